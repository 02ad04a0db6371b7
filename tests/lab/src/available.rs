//! Checks for the parts of a machine that the lab needs, and says how to get them.

use std::{
    env,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};

/// A program and its Debian package.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    package: &'static str,
}

/// The programs that every lab needs.
pub(crate) const BASE: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
    },
    Tool {
        program: "nft",
        package: "nftables",
    },
    Tool {
        program: "nsenter",
        package: "util-linux",
    },
];

/// The port-mapping daemon.
pub(crate) const MINIUPNPD: Tool = Tool {
    program: "miniupnpd",
    package: "miniupnpd miniupnpd-nftables",
};

/// The NAT64, and the name server beside it.
pub(crate) const NAT64: &[Tool] = &[
    Tool {
        program: "tayga",
        package: "tayga",
    },
    Tool {
        program: "dnsmasq",
        package: "dnsmasq-base",
    },
];

/// The independent STUN and TURN server.
pub(crate) const COTURN: Tool = Tool {
    program: "turnserver",
    package: "coturn",
};

/// The browser, and Node.js, which drives it.
pub(crate) const BROWSER: &[Tool] = &[
    Tool {
        program: "chromium",
        package: "chromium",
    },
    Tool {
        program: "node",
        package: "nodejs",
    },
];

/// Fails with a text that names everything that is missing.
pub(crate) fn check(tools: &[Tool]) -> Result<(), String> {
    let mut missing = Vec::new();
    // SAFETY: geteuid cannot fail and touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        missing.push("root, for network namespaces (run it with sudo)".to_owned());
    } else if let Err(error) = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        missing.push(format!(
            "/dev/net/tun ({error}; mkdir -p /dev/net && mknod /dev/net/tun c 10 200, or docker run --device /dev/net/tun)"
        ));
    } else if !has_net_admin() {
        missing.push(
            "the capabilities SYS_ADMIN and NET_ADMIN (in a container: --privileged)".to_owned(),
        );
    }
    let absent: Vec<_> = tools
        .iter()
        .filter(|tool| find(tool.program).is_none())
        .collect();
    if !absent.is_empty() {
        let programs: Vec<_> = absent.iter().map(|tool| tool.program).collect();
        let packages: Vec<_> = absent.iter().map(|tool| tool.package).collect();
        missing.push(format!(
            "{} (apt-get install -y --no-install-recommends {})",
            programs.join(", "),
            packages.join(" ")
        ));
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("the NAT lab needs {}", missing.join("; and ")))
    }
}

/// Looks a program up as a shell would, and also in the folders of system programs, which `PATH`
/// often lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether the effective set has CAP_NET_ADMIN (12) and CAP_SYS_ADMIN (21).
fn has_net_admin() -> bool {
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let wanted = 1 << 12 | 1 << 21;
    bits & wanted == wanted
}
