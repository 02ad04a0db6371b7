//! A machine in the lab. Programs and async code can run in it.

use std::{
    ffi::OsStr,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
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
        self.namespace.command(program)
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
