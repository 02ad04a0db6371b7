//! Network namespaces without names. A descriptor keeps each one alive, so it ends with the process
//! that holds the descriptor.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use crate::error::{Context, LabError, Result};

/// A network namespace that nothing else on the machine has a name for.
///
/// A killed run leaves no namespace behind, because the kernel frees a namespace with its last
/// descriptor and process.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
    inode: u64,
}

impl Namespace {
    /// Makes `count` namespaces. `prepare` runs inside each before any interface exists.
    pub(crate) fn create(
        count: usize,
        prepare: impl Fn() -> Result<()> + Send + Sync,
    ) -> Result<Vec<Self>> {
        // This needs its own thread, because a thread cannot leave the namespace of unshare(2).
        thread::scope(|scope| {
            let made = scope.spawn(|| {
                (0..count)
                    .map(|_| {
                        // SAFETY: unshare takes no pointer, and moves this thread only.
                        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                            return Err(io::Error::last_os_error())
                                .context("make a network namespace");
                        }
                        prepare()?;
                        let file =
                            File::open("/proc/thread-self/ns/net").context("open the namespace")?;
                        let inode = file.metadata().context("look at the namespace")?.ino();
                        Ok(Self {
                            fd: file.into(),
                            inode,
                        })
                    })
                    .collect()
            });
            made.join()
                .unwrap_or_else(|_| Err(LabError::Program("the namespace maker panicked".into())))
        })
    }

    /// The path by which other programs (`ip`, `nsenter`) find the namespace while this process
    /// lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Moves the calling thread, and every thread and process it starts from now on, into the namespace.
    pub(crate) fn enter(&self) -> io::Result<()> {
        // SAFETY: setns takes a descriptor number. A wrong number is an error, not undefined
        // behaviour.
        match unsafe { libc::setns(self.fd.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Runs `work` on a new thread inside the namespace and waits for it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let done = scope.spawn(|| {
                self.enter().context("enter the namespace")?;
                work()
            });
            done.join()
                .unwrap_or_else(|_| Err(LabError::Program("a thread of the lab panicked".into())))
        })
    }

    /// Returns a command that will run inside, and end with the thread that starts it.
    pub(crate) fn command(self: &Arc<Self>, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = Arc::clone(self);
        // SAFETY: only the two system calls run between fork and exec, and both are
        // async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                namespace.enter()?;
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }

    /// The processes inside, without this one.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|&pid| pid as u32 != std::process::id())
            .filter(|pid| {
                fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == self.inode)
            })
            .collect()
    }
}

/// Runs a helper program in the calling thread's namespace with `input` on its standard input.
pub(crate) fn feed(program: &str, args: &[&str], input: &str) -> Result<()> {
    use std::io::Write;

    let what = || format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(what())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that gives up early closes the pipe. Its output below says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context(what())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Command {
        what: what(),
        output: format!("{said}\n--- it was given\n{input}"),
    })
}

/// Writes kernel settings of the calling thread's namespace. Settings that the kernel lacks are
/// left out.
pub(crate) fn sysctl(settings: &[(&str, &str)]) -> Result<()> {
    for (name, value) in settings {
        let path = format!("/proc/sys/{name}");
        match fs::write(&path, value) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => done.context(format!("write {value} to {path}"))?,
        }
    }
    Ok(())
}
