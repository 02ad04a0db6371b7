//! A machine in the lab. Programs and async code can run in it.

use std::{
    ffi::{CString, OsStr},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    ptr,
    sync::Arc,
    thread::{self, JoinHandle},
};

use crate::{
    error::{Context, LabError, Result},
    namespace::Namespace,
};

/// A host or router of a running lab. It is cheap to clone. It keeps its namespace alive, but not
/// the lab's links.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) name: String,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// The list of name servers of its programs, in the place of the machine's.
    pub(crate) resolver: Option<PathBuf>,
}

impl Host {
    /// Returns the host's name in the description.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the host's IPv4 address. For a router, it is the external one.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.ipv4
    }

    /// Returns the host's IPv6 address. For a router, it is the external one.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6
    }

    /// Returns the host's IPv4 address, or its IPv6 address if it has no other.
    pub fn ip(&self) -> Option<IpAddr> {
        self.ipv4.map(IpAddr::V4).or(self.ipv6.map(IpAddr::V6))
    }

    /// Returns a command that will run on this host. For tokio, convert it with
    /// `tokio::process::Command::from(command)`.
    ///
    /// The program is killed when the *thread* that started it ends, so that a killed test leaves
    /// nothing behind. Start long-lived programs from a long-lived thread.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.namespace.command(program);
        if let Some(list) = &self.resolver {
            resolve_by(&mut command, list);
        }
        command
    }

    /// Runs async code on this host, on a thread with its own single-threaded tokio runtime, and waits for it.
    ///
    /// Every socket that the future opens belongs to this host, also if `spawn` or `spawn_blocking`
    /// opens it.
    ///
    /// # Errors
    /// [`LabError::Io`] if the thread cannot be made, [`LabError::Program`] if the future panics.
    pub fn run<F, T>(&self, work: F) -> Result<T>
    where
        F: AsyncFnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.spawn(work)?.join().map_err(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(panic.downcast_ref::<&str>().copied());
            LabError::Program(format!(
                "code on host {} panicked: {}",
                self.name,
                text.unwrap_or("no message")
            ))
        })?
    }

    /// Runs async code as [`run`](Self::run) does, but returns at once.
    ///
    /// # Errors
    /// [`LabError::Io`] if the thread cannot be made.
    pub fn spawn<F, T>(&self, work: F) -> Result<JoinHandle<Result<T>>>
    where
        F: AsyncFnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let namespace = Arc::clone(&self.namespace);
        thread::Builder::new()
            .name(format!("lab-{}", self.name))
            .spawn(move || {
                namespace.enter().context("enter the host's namespace")?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .context("make a runtime")?;
                Ok(runtime.block_on(work()))
            })
            .context("start a host's thread")
    }

    /// Writes a script that runs `program` on this host, for launchers that need the path of an
    /// executable.
    ///
    /// # Errors
    /// [`LabError::Io`] if the script cannot be written.
    pub fn wrapper(&self, directory: &Path, program: &str) -> Result<PathBuf> {
        let base = Path::new(program)
            .file_name()
            .unwrap_or(OsStr::new("program"))
            .to_string_lossy();
        let path = directory.join(format!("{}-{base}", self.name));
        let script = format!(
            "#!/bin/sh\nexec nsenter --net={} -- {program} \"$@\"\n",
            self.namespace.path()
        );
        let write = || -> io::Result<()> {
            fs::write(&path, &script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        };
        write().context(format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// Makes `command` find `list` where the machine's list of name servers is.
fn resolve_by(command: &mut Command, list: &Path) {
    let Ok(list) = CString::new(list.as_os_str().as_bytes()) else {
        unreachable!("a path that was made has no zero byte")
    };
    // SAFETY: only system calls run between fork and exec, all strings are there, and every call is
    // async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let none = ptr::null();
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let system = c"/etc/resolv.conf".as_ptr();
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(none, c"/".as_ptr(), none, private, ptr::null()) != 0
                || libc::mount(list.as_ptr(), system, none, libc::MS_BIND, ptr::null()) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
