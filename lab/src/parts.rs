//! What the lab is made of, built once and kept in the user's cache under a key of all
//! that went into it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
};

use sha2::{Digest, Sha256};

use crate::{
    build,
    error::{Context, LabError, Result},
    oci,
    progress::Progress,
};

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
/// The parts, all built.
pub(crate) struct Parts {
    /// The Debian tree all machines share, read-only.
    pub(crate) rootfs: PathBuf,
    /// The pause image as an OCI layout.
    pub(crate) pause: PathBuf,
    kubernetes: PathBuf,
    crio: PathBuf,
    coredns: PathBuf,
    patched_criu: PathBuf,
}

/// How to build a part into an empty folder, with its output in a log.
type Build = Box<dyn Fn(&Path, &Path) -> Result<()> + Send + Sync>;

/// A part: its name, its key and how to build it.
struct Part {
    name: &'static str,
    key: String,
    build: Build,
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
    let (debian, criu) = debian_and_criu(cache);
    Ok([debian, criu].iter().chain(&programs()?).any(|part| !part.folder(cache).exists()))
}

/// Builds what is missing: the Debian tree beside the Go programs, which use all
/// processors by themselves.
pub(crate) fn ensure(cache: &Path, progress: &Progress) -> Result<Parts> {
    let (tree, patched) = debian_and_criu(cache);
    let [kubernetes, crio, coredns, pause] = programs()?;
    thread::scope(|scope| {
        let debian = scope.spawn(|| {
            Ok::<_, LabError>((tree.ensure(cache, progress)?, patched.ensure(cache, progress)?))
        });
        let pause = pause.ensure(cache, progress)?;
        let crio = crio.ensure(cache, progress)?;
        let kubernetes = kubernetes.ensure(cache, progress)?;
        let coredns = coredns.ensure(cache, progress)?;
        let (rootfs, patched_criu) =
            debian.join().map_err(|_| LabError::Unfit("the build panicked".into()))??;
        Ok(Parts { rootfs, pause, kubernetes, crio, coredns, patched_criu })
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
            self.patched_criu.join("criu"),
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

/// The Debian tree, and CRIU built on top of it.
fn debian_and_criu(cache: &Path) -> (Part, Part) {
    let mut inputs: Vec<_> = build::PACKAGES.map(|package| package.as_bytes().to_vec()).to_vec();
    inputs.push(build::RELEASE.into());
    let debian = Part { name: "debian", key: key(&inputs), build: Box::new(build::debian) };
    inputs.push(build::CRIU_SCRIPT.into());
    inputs.push(build::CRIU_PATCH.into());
    let tree = debian.folder(cache);
    let build: Build = Box::new(move |folder, log| build::criu(&tree, folder, log));
    (debian, Part { name: "criu", key: key(&inputs), build })
}

/// The Go programs.
fn programs() -> Result<[Part; 4]> {
    let part = |name: &'static str, extra: &str, build: Build| -> Result<Part> {
        let mut inputs = vec![extra.as_bytes().to_vec()];
        for file in ["go.mod", "go.sum", "main.go"] {
            let path = build::module(name).join(file);
            match fs::read(&path) {
                Ok(bytes) => inputs.push(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => inputs.push(Vec::new()),
                Err(error) => return Err(error).context(|| format!("read {}", path.display())),
            }
        }
        Ok(Part { name, key: key(&inputs), build })
    };
    Ok([
        part("kubernetes", build::KUBERNETES_VERSION, Box::new(build::kubernetes))?,
        part("crio", build::CRIO_TAGS, Box::new(build::crio))?,
        part("coredns", "", Box::new(build::coredns))?,
        part("pause", "", Box::new(build::pause))?,
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
        let pinned = fs::read_to_string(build::module("kubernetes").join("go.mod")).unwrap();
        assert!(pinned.contains(&format!("k8s.io/kubernetes {}\n", build::KUBERNETES_VERSION)));
    }

    #[test]
    fn a_finished_part_is_not_built_again_and_replaces_older_ones() {
        let cache = tempfile::tempdir().unwrap();
        let part = |key: &str| Part {
            name: "debian",
            key: key.into(),
            build: Box::new(|folder, _| {
                fs::write(folder.join("built"), "").context(|| "write".into())
            }),
        };
        let progress = Progress::new();
        let old = part("1").ensure(cache.path(), &progress).unwrap();
        fs::write(old.join("mark"), "").unwrap();
        assert!(part("1").ensure(cache.path(), &progress).unwrap().join("mark").exists());
        let new = part("2").ensure(cache.path(), &progress).unwrap();
        assert!(new.join("built").exists() && !old.exists());
    }
}
