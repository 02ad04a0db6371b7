//! Puts the demo page into the program (feature `demo`), if `page/` is there. `make page` makes it: it is
//! the page and the npm package, and each file is compressed. A clone without it builds as well, and then
//! `throughline demo` says how to get the page.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_DEMO").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed=page");
    let folder = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or(io::ErrorKind::NotFound)
    };
    let root = folder("CARGO_MANIFEST_DIR")?.join("page");
    let mut files = Vec::new();
    if root.is_dir() {
        find(&root, &root, &mut files)?;
    }
    files.sort();
    // Clones may share a target folder, and then this file. So it names no folder of a clone.
    let items = files.iter().map(|name| {
        let path = format!("/page/{name}.gz");
        format!("({name:?}, include_bytes!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))),\n")
    });
    let text = format!("&[\n{}]\n", items.collect::<String>());
    fs::write(folder("OUT_DIR")?.join("page.rs"), text)
}

/// Finds the compressed files below `folder`, by the names that they have without the suffix.
fn find(root: &Path, folder: &Path, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(root, &path, found)?;
        } else if let Ok(name) = path.strip_prefix(root)
            && let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".gz"))
        {
            found.push(name.replace('\\', "/"));
        }
    }
    Ok(())
}
