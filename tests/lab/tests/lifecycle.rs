//! Labs come up fast, run side by side, and leave nothing behind.

use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use throughline_lab::{Lab, NatKind, Spec};

mod common;
use common::echo;

#[test]
fn a_pair_comes_up_in_less_than_a_second() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let mut times: Vec<_> = (0..5)
        .map(|_| {
            Lab::up(Spec::pair(
                NatKind::PortRestricted,
                NatKind::SymmetricRandom,
            ))
            .unwrap()
            .setup_time()
        })
        .collect();
    times.sort();
    println!(
        "a pair is up in {:?} (fastest {:?}, slowest {:?})",
        times[2], times[0], times[4]
    );
    assert!(times[2] < Duration::from_secs(1), "{times:?}");
}

#[test]
fn labs_with_the_same_names_and_addresses_run_side_by_side() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let labs: Vec<_> = (0..3)
        .map(|_| Lab::up(Spec::pair(NatKind::Masquerade, NatKind::None)).unwrap())
        .collect();
    for lab in &labs {
        let server = echo(&lab.host("relay").unwrap());
        let seen = lab
            .host("a")
            .unwrap()
            .run(async move || {
                let socket = tokio::net::UdpSocket::bind("0.0.0.0:6000").await.unwrap();
                common::seen_by(&socket, server).await
            })
            .unwrap();
        assert_eq!(
            seen.unwrap().ip(),
            lab.host("a-router").unwrap().ip().unwrap()
        );
    }
}

#[test]
fn programs_run_inside_and_end_with_the_lab() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = Lab::up(Spec::pair(NatKind::Masquerade, NatKind::None)).unwrap();
    let a = lab.host("a").unwrap();
    let output = a
        .command("ip")
        .args(["-4", "-brief", "address", "show", "eth0"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("192.168.1.10/24"));
    // The host reaches nothing outside, not even the machine's own loopback.
    let interfaces = a
        .command("ls")
        .arg("/proc/self/net/dev_snmp6")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&interfaces.stdout)
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["eth0", "lo"]
    );

    let wrapped = a.wrapper(lab.directory(), "/usr/bin/env").unwrap();
    let output = std::process::Command::new(wrapped)
        .args(["readlink", "/proc/self/ns/net"])
        .output()
        .unwrap();
    let direct = a
        .command("readlink")
        .arg("/proc/self/ns/net")
        .output()
        .unwrap();
    assert!(!output.stdout.is_empty());
    assert_eq!(output.stdout, direct.stdout);

    let mut child = a
        .command("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let directory = lab.directory().to_owned();
    assert!(directory.exists());
    drop(lab);
    assert!(!child.wait().unwrap().success());
    assert!(!directory.exists());
}

#[test]
fn a_killed_run_leaves_no_process_and_no_directory() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab_program = env!("CARGO_BIN_EXE_lab");
    let run = |script: &str| {
        std::process::Command::new(lab_program)
            .args(["run", "--host", "a", "--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = run("echo $$; exec sleep 1000");
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    let inner = line.trim().to_owned();
    let directory = std::env::temp_dir().join(format!("throughline-lab.{}.0", child.id()));
    assert!(directory.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let process = format!("/proc/{inner}");
    // The program is no child of this process, so no event reports its end.
    for _ in 0..200 {
        if !Path::new(&process).exists()
            || fs::read_to_string(format!("{process}/stat")).is_ok_and(|s| s.contains(") Z "))
        {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(
        !Path::new(&format!("{process}/fd/0")).exists(),
        "the program inside outlived its lab"
    );
    // The next lab of any process removes the directory.
    drop(Lab::up(Spec::default()).unwrap());
    assert!(!directory.exists());
}
