//! `shadow transfer` as the kubelet runs it, and ends it.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use std::net::TcpListener;
use std::process::{Command, Stdio};

/// A roll back deletes the Job, whose pod then gets a SIGTERM.
#[test]
fn a_sigterm_removes_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("a.tar");
    std::fs::write(&archive, "memory").unwrap();
    // A registry that never answers.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/checkpoints:a", registry.local_addr().unwrap());
    let result = folder.path().join("result");
    std::fs::write(&result, "").unwrap();
    let transfer = Command::new(env!("CARGO_BIN_EXE_shadow"))
        .arg("transfer")
        .args([archive.as_os_str(), image.as_ref(), "app".as_ref(), "--remove".as_ref()])
        .arg("--result-file")
        .arg(&result)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It is at work.
    let connection = registry.accept().unwrap();
    let kill = Command::new("kill").arg(transfer.id().to_string()).status().unwrap();
    assert!(kill.success());
    let ended = transfer.wait_with_output().unwrap().status;
    assert_eq!(ended.code(), Some(1), "it ends by itself, not by the signal: {ended}");
    assert!(!archive.exists());
    let told = std::fs::read_to_string(&result).unwrap();
    assert!(told.contains("stopped by a signal"), "{told}");
    drop(connection);
}
