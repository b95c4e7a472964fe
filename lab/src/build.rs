//! How each part is built. Every build runs nicely and leaves its output in a log.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{run, run_logged},
    error::{Context, Result},
    oci,
};

/// Debian's release for the root file system. An older one has a CRIU that fails on
/// recent kernels.
pub(crate) const RELEASE: &str = "trixie";
pub(crate) const PACKAGES: [&str; 17] = [
    "busybox-static",
    "ca-certificates",
    "catatonit",
    "conmon",
    "containernetworking-plugins",
    "criu",
    "crun",
    "docker-registry",
    "iproute2",
    "iptables",
    "libcriu2",
    "libseccomp2",
    "nftables",
    "procps",
    "rabbitmq-server",
    "runc",
    "skopeo",
];
/// The version that the binary reports; go.mod pins the same.
pub(crate) const KUBERNETES_VERSION: &str = "v1.36.3";
pub(crate) const CRIO_TAGS: &str =
    "containers_image_openpgp containers_image_ostree_stub exclude_graphdriver_btrfs seccomp";

/// Builds CRIU from Debian's source, on a throwaway layer over the Debian tree.
pub(crate) const CRIU_SCRIPT: &str = include_str!("../scripts/build-criu.sh");
pub(crate) const CRIU_PATCH: &str = include_str!("../patches/criu-socket-options.patch");

pub(crate) fn debian(folder: &Path, log: &Path) -> Result<()> {
    run_logged(
        "build the Debian root file system",
        Command::new("nice")
            .args(["debootstrap", "--variant=minbase", "--include=ca-certificates", RELEASE])
            .arg(folder),
        log,
    )?;
    // Packages must not start their services here; in a chroot some fail to install
    // because of it.
    let policy = folder.join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n")
        .context(|| format!("write {}", policy.display()))?;
    run("allow no services", Command::new("chmod").arg("+x").arg(&policy))?;
    fs::copy("/etc/resolv.conf", folder.join("etc/resolv.conf"))
        .context(|| "copy the host's resolv.conf".into())?;
    let install = format!(
        "mount -t proc proc /proc && export DEBIAN_FRONTEND=noninteractive && \
         apt-get install -y --no-install-recommends {} && \
         rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /usr/sbin/policy-rc.d",
        PACKAGES.join(" ")
    );
    run_logged(
        "install the lab's packages",
        Command::new("nice")
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot"])
            .arg(folder)
            .args(["/bin/sh", "-ec", &install]),
        log,
    )
}

/// CRIU as Debian has it, with our patch: see there why.
pub(crate) fn criu(tree: &Path, folder: &Path, log: &Path) -> Result<()> {
    let patch = folder.join("criu.patch");
    fs::write(&patch, CRIU_PATCH).context(|| format!("write {}", patch.display()))?;
    run_logged(
        "build CRIU",
        Command::new("nice")
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child"])
            .args(["/bin/sh", "-ec", CRIU_SCRIPT, "build-criu.sh"])
            .args([tree, folder]),
        log,
    )
}

pub(crate) fn kubernetes(folder: &Path, log: &Path) -> Result<()> {
    let version = KUBERNETES_VERSION;
    let package = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor=1 \
         -X {package}.gitMinor=36 -X k8s.io/client-go/pkg/version.gitVersion={version}"
    );
    go_build("kubernetes", ".", &flags, &[], &folder.join("kubernetes"), log)
}

pub(crate) fn crio(folder: &Path, log: &Path) -> Result<()> {
    let package = "github.com/cri-o/cri-o/cmd/crio";
    go_build("crio", package, "-s -w", &["-tags", CRIO_TAGS], &folder.join("crio"), log)?;
    let source = run(
        "find CRI-O's source",
        Command::new("go").current_dir(module("crio")).args([
            "list",
            "-m",
            "-f",
            "{{.Dir}}",
            "github.com/cri-o/cri-o",
        ]),
    )?;
    let source = Path::new(source.trim()).join("pinns/src");
    let entries = fs::read_dir(&source).context(|| format!("read {}", source.display()))?;
    let files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    run_logged(
        "build pinns",
        Command::new("gcc")
            .args(["-std=c99", "-Os", "-static", "-s", "-o"])
            .arg(folder.join("pinns"))
            .args(files),
        log,
    )
}

pub(crate) fn coredns(folder: &Path, log: &Path) -> Result<()> {
    let package = "github.com/coredns/coredns";
    go_build("coredns", package, "-s -w", &[], &folder.join("coredns"), log)
}

pub(crate) fn pause(folder: &Path, log: &Path) -> Result<()> {
    let program = folder.join("pause");
    go_build("pause", ".", "-s -w", &[], &program, log)?;
    oci::write_image(folder, &program, "/pause")
}

fn go_build(
    name: &str,
    package: &str,
    linker_flags: &str,
    arguments: &[&str],
    output: &Path,
    log: &Path,
) -> Result<()> {
    // Only CRI-O needs C, for libseccomp; all else runs in any root file system.
    let cgo = if name == "crio" { "1" } else { "0" };
    run_logged(
        &format!("build {name}"),
        Command::new("nice")
            .args(["go", "build", "-trimpath", "-ldflags", linker_flags])
            .args(arguments)
            .arg("-o")
            .arg(output)
            .arg(package)
            .current_dir(module(name))
            .env("CGO_ENABLED", cgo)
            .env("GOFLAGS", "-mod=readonly -buildvcs=false"),
        log,
    )
}

pub(crate) fn module(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(name)
}
