//! `cargo xtask image`: the project's images without Docker. One uncompressed layer each.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use shadow_checkpoint::image::push_image;
use shadow_checkpoint::{Client, ImageRef};
use shadow_lab::Lab;

/// The user that the operator runs as: nobody that exists on a node.
const USER: &str = "65532:65532";
const DEBIAN: &str = "trixie";
/// What the Python consumer needs of Debian.
const PYTHON: &str = "python3-minimal,python3-pika";

#[derive(clap::Args)]
pub struct Arguments {
    /// Registry to push to, as registry.example:5000; absent: the lab's
    #[arg(long)]
    push: Option<String>,
    /// Only build the layers below target/images
    #[arg(long, conflicts_with = "push")]
    build_only: bool,
}

struct Image {
    name: &'static str,
    layer: PathBuf,
    config: Value,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.build_only {
        for image in build()? {
            println!("{}", image.layer.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    match &arguments.push {
        Some(registry) => {
            let images = build()?;
            tokio::runtime::Runtime::new()?.block_on(push(&images, registry))?;
        }
        None => push_all(&Lab::open()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds all images and pushes them to the lab's registry.
pub fn push_all(lab: &Lab) -> anyhow::Result<()> {
    let images = build()?;
    let registry = lab.registry();
    std::thread::scope(|scope| {
        // A thread of its own: it stays in the lab's network.
        let pushed = scope.spawn(|| {
            lab.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(push(&images, &registry))
        });
        pushed.join().map_err(|_| anyhow::anyhow!("the thread that pushes panicked"))?
    })
}

async fn push(images: &[Image], registry: &str) -> anyhow::Result<()> {
    let client = Client::connect(registry, None, false).await?;
    for image in images {
        let to: ImageRef = format!("{registry}/{}:dev", image.name).parse()?;
        let layer = client.put_file(&to.repository, &image.layer).await?;
        let digest = push_image(&client, &to, &image.config, &[layer], &json!({})).await?;
        println!("{to}@{digest}");
    }
    Ok(())
}

fn build() -> anyhow::Result<Vec<Image>> {
    let bin = static_binaries()?;
    let folder = shadow_e2e::root().join("target/images");
    std::fs::create_dir_all(&folder)?;
    let shadow = folder.join("shadow.tar");
    pack(&[(&bin.join("shadow"), "shadow")], certificates().as_deref(), &shadow)?;
    let workload = folder.join("workload.tar");
    pack(&[(&bin.join("workload"), "workload")], None, &workload)?;
    Ok(vec![
        Image { name: "shadow/shadow", layer: shadow, config: json!({ "Entrypoint": ["/shadow"], "User": USER }) },
        // The workloads run as root: without CAP_SYS_RESOURCE, as in a container, CRIU may not read
        // another user's limits, and the lab has to run there too.
        Image {
            name: "shadow/workload",
            layer: workload,
            config: json!({ "Entrypoint": ["/workload"] }),
        },
        Image {
            name: "shadow/python-consumer",
            layer: python(&folder)?,
            config: json!({ "Entrypoint": ["/usr/bin/python3", "/app/consumer.py"] }),
        },
    ])
}

/// The certificate authorities of this machine, where Debian keeps them.
fn certificates() -> Option<PathBuf> {
    Some(PathBuf::from("/etc/ssl/certs/ca-certificates.crt")).filter(|file| file.exists())
}

/// Builds `shadow` and `workload` as static binaries and gives their folder.
fn static_binaries() -> anyhow::Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--release", "--target", &target])
        .args(["--package", "shadow", "--package", "shadow-workloads"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    finish(&mut cargo)?;
    Ok(shadow_e2e::root().join("target").join(target).join("release"))
}

/// A layer of a few files, the same bytes for the same content.
fn pack(
    programs: &[(&Path, &str)],
    certificates: Option<&Path>,
    layer: &Path,
) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(std::fs::File::create(layer)?);
    let mut add = |content: &[u8], name: &str, mode: u32| -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, name, content)?;
        Ok(())
    };
    add(b"nonroot:x:65532:65532::/:/nonexistent\n", "etc/passwd", 0o644)?;
    add(b"nonroot:x:65532:\n", "etc/group", 0o644)?;
    if let Some(file) = certificates {
        add(&std::fs::read(file)?, "etc/ssl/certs/ca-certificates.crt", 0o644)?;
    }
    for (file, name) in programs {
        let content = std::fs::read(file).with_context(|| file.display().to_string())?;
        add(&content, name, 0o755)?;
    }
    tar.finish()?;
    Ok(())
}

/// A small Debian with Python, kept in the lab's cache, and the consumer on top.
fn python(folder: &Path) -> anyhow::Result<PathBuf> {
    let root = shadow_lab::cache().join(format!("python-{DEBIAN}"));
    if !root.join("usr/bin/python3").exists() {
        let new = root.with_extension("new");
        let _ = std::fs::remove_dir_all(&new);
        finish(
            Command::new("debootstrap")
                .args(["--variant=minbase", &format!("--include={PYTHON}"), DEBIAN])
                .arg(&new),
        )?;
        for waste in ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"] {
            let _ = std::fs::remove_dir_all(new.join(waste));
        }
        std::fs::rename(&new, &root)?;
    }
    let app = root.join("app");
    std::fs::create_dir_all(&app)?;
    for file in ["consumer.py", "ledger.py"] {
        std::fs::copy(shadow_e2e::root().join("eval/workloads").join(file), app.join(file))?;
    }
    let layer = folder.join("python-consumer.tar");
    finish(
        Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "--numeric-owner", "--exclude=./dev/*"])
            .args(["--create", "--file"])
            .args([layer.as_os_str(), OsStr::new("--directory"), root.as_os_str()])
            .arg("."),
    )?;
    Ok(layer)
}

fn finish(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("can't run {command:?}"))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().display());
    }
    Ok(())
}
