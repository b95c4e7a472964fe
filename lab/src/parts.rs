//! What the lab is made of, built once and kept in the user's cache under a key of all
//! that went into it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use sha2::{Digest, Sha256};

use crate::{
    command::{run, run_logged},
    error::{Context, LabError, Result},
    oci,
    progress::Progress,
};

/// Debian's release for the root file system. An older one has a CRIU that fails on
/// recent kernels.
const RELEASE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";
const PACKAGES: [&str; 17] = [
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
/// What the multi-call binary answers to.
const KUBERNETES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];
/// The version that the binary reports; go.mod pins the same.
const KUBERNETES_VERSION: &str = "v1.36.3";
const CRIO_TAGS: &str =
    "containers_image_openpgp containers_image_ostree_stub exclude_graphdriver_btrfs seccomp";

/// The parts, all built.
pub(crate) struct Parts {
    /// The Debian tree all machines share, read-only.
    pub(crate) rootfs: PathBuf,
    /// The pause image as an OCI layout.
    pub(crate) pause: PathBuf,
    kubernetes: PathBuf,
    crio: PathBuf,
    coredns: PathBuf,
}

/// A part: its name, its key and how to build it into an empty folder.
struct Part {
    name: &'static str,
    key: String,
    build: fn(&Path, &Path) -> Result<()>,
}

impl Part {
    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join("parts").join(format!("{}-{}", self.name, self.key))
    }

    /// Returns the part's folder, building it first if it isn't there.
    fn ensure(&self, cache: &Path, progress: &Progress) -> Result<PathBuf> {
        let folder = self.folder(cache);
        if folder.exists() {
            return Ok(folder);
        }
        let partial = cache.join("parts").join(format!("{}.partial", self.name));
        let log = cache.join("logs").join(format!("build-{}.log", self.name));
        progress.step(&format!("building {}", self.name), || {
            remove(&partial)?;
            remove(&log)?;
            fs::create_dir_all(&partial).context(|| format!("create {}", partial.display()))?;
            (self.build)(&partial, &log)?;
            self.drop_older(cache)?;
            fs::rename(&partial, &folder).context(|| format!("create {}", folder.display()))
        })?;
        Ok(folder)
    }

    /// Parts with another key are of no use to anyone: a lab that runs is never rebuilt.
    fn drop_older(&self, cache: &Path) -> Result<()> {
        let parts = cache.join("parts");
        let prefix = format!("{}-", self.name);
        let entries = fs::read_dir(&parts).context(|| format!("read {}", parts.display()))?;
        for entry in entries.filter_map(io::Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Whether any part would have to be built.
pub(crate) fn incomplete(cache: &Path) -> Result<bool> {
    Ok(all()?.iter().any(|part| !part.folder(cache).exists()))
}

/// Builds what is missing: the Debian tree beside the Go programs, which use all
/// processors by themselves.
pub(crate) fn ensure(cache: &Path, progress: &Progress) -> Result<Parts> {
    let [rootfs, kubernetes, crio, coredns, pause] = all()?;
    thread::scope(|scope| {
        let tree = scope.spawn(|| rootfs.ensure(cache, progress));
        let parts = Parts {
            pause: pause.ensure(cache, progress)?,
            crio: crio.ensure(cache, progress)?,
            kubernetes: kubernetes.ensure(cache, progress)?,
            coredns: coredns.ensure(cache, progress)?,
            rootfs: PathBuf::new(),
        };
        let rootfs = tree.join().map_err(|_| LabError::Unfit("the build panicked".into()))??;
        Ok(Parts { rootfs, ..parts })
    })
}

impl Parts {
    /// Puts all programs into one folder under the names they are called by.
    pub(crate) fn link_programs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
        for file in [
            self.kubernetes.join("kubernetes"),
            self.crio.join("crio"),
            self.crio.join("pinns"),
            self.coredns.join("coredns"),
        ] {
            let name = file.file_name().unwrap_or_default();
            fs::hard_link(&file, folder.join(name))
                .context(|| format!("link {}", file.display()))?;
        }
        for name in KUBERNETES {
            std::os::unix::fs::symlink("kubernetes", folder.join(name))
                .context(|| format!("link {name} in {}", folder.display()))?;
        }
        Ok(())
    }
}

fn all() -> Result<[Part; 5]> {
    let go = |name: &'static str, extra: &[&str], build| -> Result<Part> {
        let mut inputs: Vec<Vec<u8>> = extra.iter().map(|text| text.as_bytes().to_vec()).collect();
        for file in ["go.mod", "go.sum", "main.go"] {
            let path = module(name).join(file);
            match fs::read(&path) {
                Ok(bytes) => inputs.push(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => inputs.push(Vec::new()),
                Err(error) => return Err(error).context(|| format!("read {}", path.display())),
            }
        }
        Ok(Part { name, key: key(&inputs), build })
    };
    let packages = PACKAGES.map(str::as_bytes).map(<[u8]>::to_vec);
    let mut tree = vec![RELEASE.into()];
    tree.extend(packages);
    Ok([
        Part { name: "debian", key: key(&tree), build: build_debian },
        go("kubernetes", &[KUBERNETES_VERSION], build_kubernetes)?,
        go("crio", &[CRIO_TAGS], build_crio)?,
        go("coredns", &[], build_coredns)?,
        go("pause", &[], build_pause)?,
    ])
}

/// A key over inputs, each with its length so that none can run into the next.
fn key(inputs: &[Vec<u8>]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update(input.len().to_le_bytes());
        hash.update(input);
    }
    oci::hex(&hash.finalize()[..8])
}

fn build_debian(folder: &Path, log: &Path) -> Result<()> {
    run_logged(
        "build the Debian root file system",
        Command::new("nice")
            .args(["debootstrap", "--variant=minbase", "--include=ca-certificates", RELEASE])
            .arg(folder)
            .arg(MIRROR),
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

fn build_kubernetes(folder: &Path, log: &Path) -> Result<()> {
    let version = KUBERNETES_VERSION;
    let package = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor=1 \
         -X {package}.gitMinor=36 -X k8s.io/client-go/pkg/version.gitVersion={version}"
    );
    go_build("kubernetes", ".", &flags, &[], &folder.join("kubernetes"), log)
}

fn build_crio(folder: &Path, log: &Path) -> Result<()> {
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

fn build_coredns(folder: &Path, log: &Path) -> Result<()> {
    let package = "github.com/coredns/coredns";
    go_build("coredns", package, "-s -w", &[], &folder.join("coredns"), log)
}

fn build_pause(folder: &Path, log: &Path) -> Result<()> {
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

fn module(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(name)
}

/// Removes a file or folder that may not be there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed(inputs: &[&str]) -> String {
        key(&inputs.iter().map(|input| input.as_bytes().to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn a_key_depends_on_every_input_and_its_boundaries() {
        assert_eq!(keyed(&["a", "b"]), keyed(&["a", "b"]));
        assert_ne!(keyed(&["a", "b"]), keyed(&["a", "c"]));
        assert_ne!(keyed(&["ab", "c"]), keyed(&["a", "bc"]));
        assert_ne!(keyed(&["a"]), keyed(&["a", ""]));
    }

    #[test]
    fn the_reported_version_is_the_pinned_one() {
        let pinned = fs::read_to_string(module("kubernetes").join("go.mod")).unwrap();
        assert!(pinned.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}\n")));
    }

    #[test]
    fn a_finished_part_is_not_built_again_and_replaces_older_ones() {
        let cache = tempfile::tempdir().unwrap();
        let part = |key: &str| Part {
            name: "debian",
            key: key.into(),
            build: |folder, _| fs::write(folder.join("built"), "").context(|| "write".into()),
        };
        let progress = Progress::new();
        let old = part("1").ensure(cache.path(), &progress).unwrap();
        fs::write(old.join("mark"), "").unwrap();
        assert!(part("1").ensure(cache.path(), &progress).unwrap().join("mark").exists());
        let new = part("2").ensure(cache.path(), &progress).unwrap();
        assert!(new.join("built").exists() && !old.exists());
    }
}
