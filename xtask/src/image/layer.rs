//! Layers: tar archives that are the same bytes for the same content (sorted, owned by root, from 1970).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{check_static, finish};

/// Builds the Debian layer; its name and content are part of the layer's key in the cache.
const DEBIAN: &str = include_str!("debian.sh");
const SUITE: &str = "trixie";
/// What the Python consumer needs of Debian.
const PACKAGES: &str = "python3-minimal,python3-pika";
/// Where Debian keeps the certificate authorities, and Go and OpenSSL look for them.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// A layer with one static program at `/`, nobody to run it, and this machine's certificate authorities,
/// if it has any.
pub fn program(program: &Path, authorities: bool, folder: &Path) -> anyhow::Result<PathBuf> {
    check_static(program)?;
    let name = program.file_name().and_then(|name| name.to_str()).context("a program's name")?;
    let mut files = vec![
        ("etc/group".to_owned(), b"nonroot:x:65532:\n".to_vec(), 0o644),
        ("etc/passwd".to_owned(), b"nonroot:x:65532:65532::/:/nonexistent\n".to_vec(), 0o644),
    ];
    let system = Path::new("/").join(AUTHORITIES);
    if authorities && system.exists() {
        files.push((AUTHORITIES.to_owned(), read(&system)?, 0o644));
    }
    files.push((name.to_owned(), read(program)?, 0o755));
    pack(&files, folder.join(format!("{name}.tar")))
}

/// A layer with the Python consumer in `/app`.
pub fn python_consumer(folder: &Path) -> anyhow::Result<PathBuf> {
    let source = shadow_e2e::root().join("eval/workloads");
    let mut files = Vec::new();
    for name in ["consumer.py", "ledger.py"] {
        files.push((format!("app/{name}"), read(&source.join(name))?, 0o644));
    }
    pack(&files, folder.join("python-consumer.tar"))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

fn pack(files: &[(String, Vec<u8>, u32)], layer: PathBuf) -> anyhow::Result<PathBuf> {
    let mut tar = tar::Builder::new(File::create(&layer)?);
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, name, content.as_slice())?;
    }
    tar.finish()?;
    Ok(layer)
}

/// A layer with a small Debian and Python, built once and kept in the lab's cache.
pub fn debian_with_python() -> anyhow::Result<PathBuf> {
    let inputs = format!("{SUITE} {PACKAGES} {} {DEBIAN}", std::env::consts::ARCH);
    let digest = shadow_checkpoint::registry::digest(inputs.as_bytes());
    let key: String = digest.trim_start_matches("sha256:").chars().take(16).collect();
    let folder = shadow_lab::cache().join("images");
    let layer = folder.join(format!("debian-python-{key}.tar"));
    if layer.exists() {
        return Ok(layer);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the python image needs a Debian tree, and making one needs root: run this as root");
    }
    println!("building a Debian tree with Python (once, some minutes)");
    install_debootstrap()?;
    let work = layer.with_extension("partial");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work)?;
    // Mounts made on the way are of this namespace, and end with it.
    finish(
        Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-eu", "-c", DEBIAN])
            .args(["debian.sh", SUITE, PACKAGES])
            .arg(&work),
    )?;
    std::fs::rename(work.join("layer.tar"), &layer)?;
    std::fs::remove_dir_all(&work)?;
    Ok(layer)
}

fn install_debootstrap() -> anyhow::Result<()> {
    if Path::new("/usr/sbin/debootstrap").exists() {
        return Ok(());
    }
    finish(Command::new("apt-get").args(["update", "-qq"]))?;
    finish(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends", "debootstrap"])
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}
