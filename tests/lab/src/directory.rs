//! The directory of each lab. It is named after its process, so that leftovers can be recognized.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::error::{Context, Result};

const DIRECTORY_PREFIX: &str = "throughline-lab.";

/// Makes a directory named after this process, and removes those of processes that are gone.
pub(crate) fn make() -> Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let base = std::env::temp_dir();
    for entry in fs::read_dir(&base)
        .context("read the temporary directory")?
        .flatten()
    {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| {
            name.strip_prefix(DIRECTORY_PREFIX)?
                .split_once('.')?
                .0
                .parse::<u32>()
                .ok()
        });
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = base.join(format!("{DIRECTORY_PREFIX}{}.{number}", process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir(&path).context(format!("make {}", path.display()))?;
    Ok(path)
}
