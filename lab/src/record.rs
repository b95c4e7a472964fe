//! The record of the running lab, through which every later process finds it.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, LabError, Result},
    machine::Machine,
    parts::remove,
    plan::{self, Node},
};

const FOLDER: &str = "/run/shadow-lab";

/// What a later process must know. Not printable: it holds the broker's password.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The cache the lab was started from.
    pub(crate) cache: PathBuf,
    /// How many nodes it has.
    pub(crate) nodes: u8,
    /// The password of the broker's user.
    pub(crate) password: String,
    /// Its machines, the control machine first.
    pub(crate) machines: Vec<Machine>,
    /// Whether `lab up` came to its end.
    pub(crate) complete: bool,
}

impl Record {
    /// The record, if there is one.
    pub(crate) fn load() -> Result<Option<Self>> {
        let path = path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(|| format!("read {}", path.display())),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| LabError::Record { path, source })
    }

    /// Writes the record, readable by root alone.
    pub(crate) fn save(&self) -> Result<()> {
        let path = path();
        let new = path.with_extension("new");
        let write = || {
            fs::create_dir_all(FOLDER)?;
            let mut file = fs::File::options()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&new, &path)
        };
        write().context(|| format!("write {}", path.display()))
    }

    /// Forgets the lab.
    pub(crate) fn clear() -> Result<()> {
        remove(Path::new(FOLDER))
    }

    /// The nodes of the address plan.
    pub(crate) fn plan(&self) -> Vec<Node> {
        plan::nodes(self.nodes)
    }

    /// Where the lab keeps its files.
    pub(crate) fn places(&self) -> Places {
        Places { cache: self.cache.clone() }
    }
}

fn path() -> PathBuf {
    Path::new(FOLDER).join("lab.json")
}

/// The folders of the lab, all in the user's cache.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) cache: PathBuf,
}

impl Places {
    /// `SHADOW_LAB_CACHE`, or `shadow-lab` in the user's cache folder.
    pub(crate) fn from_environment() -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let home = || PathBuf::from(set("HOME").unwrap_or_else(|| "/root".into()));
        let caches = || set("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
        let cache =
            set("SHADOW_LAB_CACHE").map_or_else(|| caches().join("shadow-lab"), PathBuf::from);
        // Overlay mounts and the record need it independent of the working directory.
        Self { cache: std::path::absolute(&cache).unwrap_or(cache) }
    }

    /// What lives as long as the lab runs.
    pub(crate) fn run(&self) -> PathBuf {
        self.cache.join("run")
    }

    /// The programs, under the names they are called by.
    pub(crate) fn bin(&self) -> PathBuf {
        self.run().join("bin")
    }

    /// One machine's files.
    pub(crate) fn data(&self, machine: &str) -> PathBuf {
        self.run().join(machine)
    }

    /// What appears as `/etc/shadow-lab` on a machine.
    pub(crate) fn etc(&self, machine: &str) -> PathBuf {
        self.data(machine).join("etc")
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.run().join("kubeconfig")
    }

    /// Logs outlive the lab, until the next one starts.
    pub(crate) fn logs(&self) -> PathBuf {
        self.cache.join("logs")
    }

    /// One component's log.
    pub(crate) fn log(&self, machine: &str, component: &str) -> PathBuf {
        self.logs().join(machine).join(format!("{component}.log"))
    }
}
