//! What is known of a cluster: data, and nothing that decides.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use crate::text::Text;

/// A fact, or why it is not known.
pub type Known<T> = Result<T, Text>;

/// Format of a [`Report`].
pub const FORMAT: u32 = 1;

/// All that doctor looks at.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The nodes, by name.
    pub nodes: Vec<Node>,
    /// They are all that there are.
    pub all: bool,
    /// What the operator may do of what it must.
    pub rights: Known<Vec<Right>>,
    /// The CRD.
    pub crd: Known<Crd>,
    /// The broker, if one was named.
    pub broker: Option<Broker>,
    /// The registry, if one was named.
    pub registry: Option<Registry>,
    /// The pod, if one was named.
    pub pod: Option<Patient>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its condition `Ready`.
    pub ready: bool,
    /// `v1.36.3`
    pub kubelet: Text,
    /// `cri-o://1.36.3`
    pub runtime: Text,
    /// `6.18.5`
    pub kernel: Text,
    /// `amd64`
    pub architecture: Text,
    /// The feature gate `ContainerCheckpoint` as its kubelet's configuration has it, if that names it.
    pub gate: Known<Option<bool>>,
    /// The agent's pod there.
    pub agent: Known<Agent>,
    /// What only the node itself knows.
    pub report: Known<Report>,
}

/// The agent on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// No pod of it.
    Absent,
    /// There is one.
    Unready,
    /// There is one that is Ready.
    Ready,
}

/// A right that config/rbac/role.yaml gives to the operator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// API group; empty for the core.
    pub group: String,
    /// `pods`, or with a subresource `pods/status`.
    pub resource: String,
    /// `get`
    pub verb: String,
    /// Whether it has it.
    pub allowed: bool,
}

/// The CRD in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crd {
    /// Not there.
    Absent,
    /// There, but not in our version.
    OtherVersion,
    /// There and served.
    Served,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Whether it can be reached and used, and its version.
    pub answers: Known<Survey>,
    /// The queue that was named.
    pub queue: Option<String>,
}

/// What a broker says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// `4.0.5`
    pub version: Text,
    /// Alarms in force.
    pub alarms: Vec<Text>,
    /// Its management API keeps no statistics.
    pub statistics_disabled: bool,
    /// Whether the named queue exists.
    pub queue_exists: bool,
    /// Whether a lock can be taken: the right to declare a queue.
    pub lock: Option<Text>,
}

/// A registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// `host/repository`
    pub name: String,
    /// Nothing, or why it takes no image from us.
    pub takes: Result<(), Text>,
}

/// The pod that was named.
#[derive(Debug, Clone, PartialEq)]
pub struct Patient {
    /// The pod.
    pub pod: core::Pod,
    /// The container to be moved.
    pub container: String,
    /// Handler of its `RuntimeClass`, where it has one.
    pub handler: Option<Known<Text>>,
    /// Memory of the container in bytes.
    pub memory: Known<u64>,
}

/// What a node knows of itself: the one document that `shadow node-facts` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Settings of CRI-O.
    pub crio: Known<Crio>,
    /// Settings of containerd.
    pub containerd: Known<Containerd>,
    /// CRIU.
    pub criu: Criu,
    /// Options in CRIU's configuration files, by the file's name: `crun.conf`.
    pub options: Known<BTreeMap<Text, BTreeSet<Text>>>,
    /// crun; nothing where it is not installed.
    pub crun: Known<Option<Crun>>,
    /// Version of the cgroups that containers are in.
    pub cgroup: Known<u8>,
    /// Features of the CPU that all cores have.
    pub cpu: Known<BTreeSet<Text>>,
    /// Free bytes where the kubelet puts checkpoints.
    pub checkpoints_free: Known<u64>,
    /// Free bytes where the runtime keeps containers and images.
    pub storage_free: Known<u64>,
    /// The container that was asked for.
    pub process: Option<Known<Process>>,
}

/// Settings of CRI-O, from /etc/crio. What is absent has CRI-O's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Crio {
    /// `enable_criu_support`
    pub criu: Option<bool>,
    /// `container_level_enabled`
    pub level: Option<Text>,
    /// `signature_policy`
    pub policy: Option<Text>,
    /// Namespaces with a signature policy of their own.
    pub policies: BTreeSet<Text>,
    /// `default_runtime`
    pub runtime: Option<Text>,
    /// `root`
    pub root: Option<Text>,
}

/// Settings of containerd, from /etc/containerd/config.toml.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Containerd {
    /// `enable_experimental_restore_via_create`
    pub restore: bool,
}

/// CRIU on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criu {
    /// What `criu --version` prints; nothing where it is not installed.
    pub version: Known<Option<Text>>,
    /// Nothing, or what `criu check` complains of.
    pub check: Known<Option<Text>>,
}

/// crun on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crun {
    /// What `crun --version` prints first.
    pub version: Text,
    /// Whether it was built with CRIU.
    pub criu: bool,
}

/// The processes of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// How many.
    pub count: u32,
    /// Some of them could not be read.
    pub unread: u32,
    /// Resident memory in bytes.
    pub memory: u64,
    /// They have an `io_uring`.
    pub io_uring: bool,
    /// Watches of inotify on files of the container's own image.
    pub overlay_watches: u32,
    /// Terminals.
    pub terminals: BTreeSet<Text>,
    /// Device files that are open, or mapped.
    pub devices: BTreeSet<Text>,
    /// Open things that are no files, and that CRIU is not known to dump.
    pub handles: BTreeSet<Text>,
    /// They are in another user namespace than the node.
    pub user_namespace: bool,
    /// Established TCP connections.
    pub tcp_established: u32,
    /// Listening TCP sockets.
    pub tcp_listening: u32,
    /// Connected Unix sockets.
    pub unix_connected: u32,
    /// Sockets that no list of the kernel knows.
    pub unlisted_sockets: u32,
    /// Protocols in use in its network that CRIU can't dump.
    pub protocols: BTreeSet<Text>,
}
