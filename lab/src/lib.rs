//! The lab: a real Kubernetes on one Linux machine, without Docker and without touching
//! the host's network, mounts or cgroups.
//!
//! ```text
//! host
//! ├─ machine "control"   etcd, API server, controllers, CoreDNS, RabbitMQ, registry
//! │    bridge 10.213.0.1/16 ── cables ──┐
//! ├─ machine "worker-1"  kubelet, CRI-O, kube-proxy; pods 10.214.1.0/24
//! └─ machine "worker-2"  …                            pods 10.214.2.0/24
//! ```
//!
//! Each machine is one process in mount, UTS, IPC, network and PID namespaces of its own
//! over a shared Debian tree. All addresses are in those namespaces: a program of the host
//! that wants to talk to the cluster calls [`enter`] first, before it starts threads.

mod build;
mod cgroup;
mod command;
mod component;
mod configure;
mod down;
mod error;
mod lab;
mod lock;
mod machine;
mod oci;
mod parts;
mod pki;
mod plan;
mod power;
mod preflight;
mod progress;
mod record;
mod render;
mod up;
mod wait;

pub use crate::{
    down::down,
    error::{LabError, Result},
    lab::{Endpoint, Lab, enter},
    plan::REGISTRY_NAME,
    up::up,
};

/// Where built things are kept: `SHADOW_LAB_CACHE`, or `shadow-lab` in the user's cache folder.
pub fn cache() -> std::path::PathBuf {
    record::Places::from_environment().cache
}
