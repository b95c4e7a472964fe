//! `cargo xtask image`: the project's images without Docker.

mod layer;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use shadow_checkpoint::oci::{push_image, write_layout};
use shadow_checkpoint::{Client, Credentials, ImageRef};
use shadow_lab::Lab;

/// The user that the operator runs as: nobody that exists on a node.
const USER: &str = "65532:65532";
const TAG: &str = "dev";
/// Linked with everything it needs.
const STATIC: &str = "-C target-feature=+crt-static";

#[derive(clap::Args)]
pub struct Arguments {
    /// Which image
    #[arg(value_enum, default_value = "all")]
    which: Which,
    /// Push to this registry, as registry.example:5000; neither this nor --out: to the lab's
    #[arg(long, value_name = "HOST:PORT")]
    push: Option<String>,
    /// Write each as an OCI image layout below this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// The operator and the transfer Job
    Shadow,
    /// Producer, consumer and probe of the demo and the tests
    Workload,
    /// The Python consumer
    Python,
    /// The operator that dies where a test tells it to; never of use elsewhere
    Failpoints,
    /// All but that
    All,
}

struct Image {
    name: &'static str,
    layers: Vec<PathBuf>,
    config: Value,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    // Before the build: a lab that is not there should not cost minutes.
    let lab = match (&arguments.push, &arguments.out) {
        (None, None) => Some(Lab::open()?),
        _ => None,
    };
    let images = build(arguments.which)?;
    if let Some(folder) = &arguments.out {
        for image in &images {
            let layout = folder.join(image.name);
            let digest = write_layout(&layout, TAG, &image.config, &image.layers)
                .with_context(|| format!("write {}", layout.display()))?;
            println!("{}@{digest}", layout.display());
        }
    }
    if let Some(registry) = &arguments.push {
        tokio::runtime::Runtime::new()?.block_on(push(&images, registry))?;
    }
    if let Some(lab) = lab {
        push_to_lab(&images, &lab)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds all images and pushes them to the lab's registry.
pub fn push_all(lab: &Lab) -> anyhow::Result<()> {
    push_to_lab(&build(Which::All)?, lab)
}

/// As [`push_all`], and the operator that dies where it is told to.
pub fn push_all_for_chaos(lab: &Lab) -> anyhow::Result<()> {
    push_all(lab)?;
    push_to_lab(&build(Which::Failpoints)?, lab)
}

/// Builds the operator of the checkout at `root` and pushes it as `name`.
pub fn push_of(root: &Path, name: &'static str, lab: &Lab) -> anyhow::Result<()> {
    let target = host_target()?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--release", "--package", "shadow", "--target", &target])
        .env("RUSTFLAGS", STATIC)
        .current_dir(root);
    finish(&mut cargo)?;
    let bin = root.join("target").join(target).join("release");
    push_to_lab(&[shadow_image(name, &bin, &root.join("target"))?], lab)
}

fn shadow_image(name: &'static str, bin: &Path, folder: &Path) -> anyhow::Result<Image> {
    Ok(Image {
        name,
        layers: vec![layer::program(&bin.join("shadow"), true, folder)?],
        config: json!({ "Entrypoint": ["/shadow"], "User": USER }),
    })
}

fn push_to_lab(images: &[Image], lab: &Lab) -> anyhow::Result<()> {
    let registry = lab.registry();
    std::thread::scope(|scope| {
        // A thread of its own: it stays in the lab's network.
        let pushed = scope.spawn(|| {
            lab.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(push(images, &registry))
        });
        pushed.join().map_err(|_| anyhow::anyhow!("the thread that pushes panicked"))?
    })
}

async fn push(images: &[Image], registry: &str) -> anyhow::Result<()> {
    let credentials = Credentials::find(registry, None)?;
    let client = Client::connect(registry, credentials, false).await?;
    for image in images {
        let to: ImageRef = format!("{registry}/{}:{TAG}", image.name).parse()?;
        let pushed = push_image(&client, &to, &image.config, &image.layers).await?;
        println!("{to}@{}", pushed.reference());
    }
    Ok(())
}

fn build(which: Which) -> anyhow::Result<Vec<Image>> {
    let folder = shadow_e2e::root().join("target/images");
    std::fs::create_dir_all(&folder)?;
    if which == Which::Failpoints {
        let folder = folder.join("failpoints");
        std::fs::create_dir_all(&folder)?;
        let bin = static_binaries(&["--package", "shadow", "--features", "shadow/failpoints"])?;
        return Ok(vec![shadow_image("shadow/failpoints", &bin, &folder)?]);
    }
    let wanted = |image| which == image || which == Which::All;
    let mut packages = Vec::new();
    packages.extend(wanted(Which::Shadow).then_some(["--package", "shadow"]));
    packages.extend(wanted(Which::Workload).then_some(["--package", "shadow-workloads"]));
    let bin = if packages.is_empty() {
        PathBuf::new()
    } else {
        static_binaries(packages.as_flattened())?
    };
    let mut images = Vec::new();
    if wanted(Which::Shadow) {
        images.push(shadow_image("shadow/shadow", &bin, &folder)?);
    }
    // The workloads run as root: without CAP_SYS_RESOURCE, as in a container, CRIU may not read another
    // user's limits, and the lab has to run there too.
    if wanted(Which::Workload) {
        images.push(Image {
            name: "shadow/workload",
            layers: vec![layer::program(&bin.join("workload"), false, &folder)?],
            config: json!({ "Entrypoint": ["/workload"] }),
        });
    }
    if wanted(Which::Python) {
        images.push(Image {
            name: "shadow/python-consumer",
            layers: vec![layer::debian_with_python()?, layer::python_consumer(&folder)?],
            config: json!({ "Entrypoint": ["/usr/bin/python3", "/app/consumer.py"] }),
        });
    }
    Ok(images)
}

/// Builds static binaries and gives their folder.
///
/// They are linked with the GNU C library: since version 2.34 it resolves names by files and DNS without
/// loading anything.
fn static_binaries(which: &[&str]) -> anyhow::Result<PathBuf> {
    let target = host_target()?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--release", "--target", &target])
        .args(which)
        .env("RUSTFLAGS", STATIC);
    finish(&mut cargo)?;
    Ok(shadow_e2e::root().join("target").join(target).join("release"))
}

/// The triple that this machine's compiler builds for.
fn host_target() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("can't run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// Refuses a program that needs anything else at run time: an image from scratch has nothing else.
fn check_static(program: &Path) -> anyhow::Result<()> {
    let output = Command::new("ldd").arg(program).output().context("can't run ldd")?;
    if String::from_utf8_lossy(&output.stdout).contains("=>") {
        bail!("{} is not a static program", program.display());
    }
    Ok(())
}

fn finish(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("can't run {command:?}"))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().display());
    }
    Ok(())
}
