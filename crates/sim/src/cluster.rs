//! The cluster as far as the protocol sees it: pods, their kubelets, their owners' controllers.

use std::collections::BTreeMap;

use shadow_broker::memory::core::ConnectionId;
use shadow_protocol::observation::{self, Container, Owner};

use crate::scenario::OwnerKind;

/// The container that moves.
pub const CONTAINER: &str = "app";

/// A pod.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Number of its creation: its UID.
    pub uid: u32,
    /// Its node.
    pub node: String,
    /// Number of its container's start; absent while it has not been started.
    pub container: Option<u32>,
    /// Its process, once it runs.
    pub process: Option<usize>,
    /// Its process has gone with its node's power, and the API server does not know.
    pub unpowered: bool,
    /// The connection of that process, which the broker takes for alive until it misses heartbeats.
    pub unnoticed: Option<ConnectionId>,
    /// The checkpoint it is restored from.
    pub checkpoint: Option<usize>,
    /// Its container has ended for good.
    pub ended: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// It does not exist any more.
    pub gone: bool,
    /// Its object stays when it is deleted, until the operator lets it go.
    pub kept: bool,
    /// Its probes pass.
    pub probed: bool,
    /// It has the migration's label.
    pub ours: bool,
    /// Its owner counts it as its own.
    pub owned: bool,
    /// Its handoff gate; absent: it has none.
    pub gate: Option<bool>,
    /// Its owner deletes it first.
    pub preferred: bool,
}

impl Pod {
    /// Exists and is not on its way out.
    pub fn alive(&self) -> bool {
        !self.gone && !self.terminating && !self.ended
    }

    /// The same, and its node has power.
    pub fn powered(&self) -> bool {
        self.alive() && !self.unpowered
    }

    /// Its container runs, as far as is known.
    pub fn runs(&self) -> bool {
        self.process.is_some() || self.unpowered
    }

    /// Its containers' probes pass and its gate is open.
    pub fn ready(&self) -> bool {
        self.probed && self.gate != Some(false) && self.runs()
    }

    /// Its network address.
    pub fn address(&self) -> String {
        format!("10.0.0.{}", self.uid)
    }

    /// The pod in the protocol's terms.
    pub fn seen(&self, owner: OwnerKind, remembers: bool) -> observation::Pod {
        let running = self.runs();
        let status = Container {
            id: format!("container-{}", self.container.unwrap_or_default()),
            running,
            started: self.container.is_some(),
            restarts: 0,
            image: "app:1".to_owned(),
        };
        observation::Pod {
            uid: format!("pod-{}", self.uid),
            node: Some(self.node.clone()),
            ip: Some(self.address()),
            running: running && !self.ended,
            ended: self.ended,
            ready: self.ready(),
            containers_ready: self.probed && running,
            terminating: self.terminating,
            owner: match owner {
                OwnerKind::Bare => Owner::Bare,
                OwnerKind::Deployment => {
                    Owner::Deployment { replica_set: "set-1".into(), deployment: "set".into() }
                }
                OwnerKind::StatefulSet | OwnerKind::Shrinking => {
                    Owner::StatefulSet("consumer".into())
                }
            },
            containers: vec![CONTAINER.to_owned()],
            statuses: BTreeMap::from([(CONTAINER.to_owned(), status)]),
            problems: Vec::new(),
            remembers,
            has_left: false,
            liveness: None,
            before: None,
            waiting: None,
            ours: self.ours,
        }
    }
}
