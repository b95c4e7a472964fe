//! The cluster's part of the world: kubelets, and the controllers of the pod's owner.

use shadow_protocol::phase::Plan;

use super::{Event, NODES, SOURCE, World};
use crate::cluster::Pod;
use crate::scenario::OwnerKind;

impl World {
    pub(super) fn create_pod(
        &mut self,
        name: &str,
        node: &str,
        checkpoint: Option<usize>,
    ) -> usize {
        let uid = u32::try_from(self.pods.len()).unwrap_or(u32::MAX) + 1;
        self.pods.push(Pod {
            name: name.to_owned(),
            uid,
            node: node.to_owned(),
            checkpoint,
            ..Pod::default()
        });
        let pod = self.pods.len() - 1;
        self.log.note(self.now, || format!("pod {name} is created on {node}"));
        if uid > 1 {
            self.at(self.scenario.start, Event::Started(pod));
        }
        pod
    }

    /// The container of a pod begins to run, or fails to.
    pub(super) fn started(&mut self, pod: usize) {
        let found = &self.pods[pod];
        if !found.alive() || found.process.is_some() {
            return;
        }
        if let Some(wait) = self.unpowered(pod) {
            return self.at(wait, Event::Started(pod));
        }
        let name = found.name.clone();
        let checkpoint = found.checkpoint;
        if checkpoint.is_some() && std::mem::take(&mut self.restore_fails) {
            self.pods[pod].ended = true;
            self.log.note(self.now, || format!("pod {name} can't be restored"));
            self.changed();
            return;
        }
        let memory = checkpoint.map_or_else(|| self.fresh(), |it| self.checkpoints[it].clone());
        let process = self.spawn(memory, &name, &self.pods[pod].address());
        let number = u32::try_from(self.processes.len()).unwrap_or(u32::MAX);
        let found = &mut self.pods[pod];
        (found.process, found.container) = (Some(process), Some(number));
        self.log.note(self.now, || format!("pod {name} runs"));
        let probed = self.rng.u64(self.tempo.probed.clone());
        self.at(probed, Event::Probed(pod));
        self.changed();
    }

    /// The kubelet has looked whether it is well.
    pub(super) fn probed(&mut self, pod: usize) {
        if let Some(wait) = self.unpowered(pod) {
            return self.at(wait, Event::Probed(pod));
        }
        self.pods[pod].probed = self.pods[pod].process.is_some();
        self.changed();
    }

    /// Its process ends, and the kubelet does not start it again.
    pub(super) fn end(&mut self, pod: usize) {
        if let Some(process) = self.pods[pod].process.take() {
            self.kill(process);
        }
        self.pods[pod].ended = true;
        self.pods[pod].probed = false;
        self.changed();
    }

    pub(super) fn delete_pod(&mut self, pod: usize, grace: u64) {
        if self.pods[pod].gone || self.pods[pod].terminating {
            return;
        }
        self.pods[pod].terminating = true;
        let name = self.pods[pod].name.clone();
        self.log.note(self.now, || format!("pod {name} is being deleted"));
        self.at(grace, Event::Gone(pod));
        self.changed();
    }

    pub(super) fn gone(&mut self, pod: usize) {
        // Only its kubelet can say so.
        if let Some(wait) = self.unpowered(pod) {
            return self.at(wait, Event::Gone(pod));
        }
        self.last_words(pod);
        if let Some(process) = self.pods[pod].process.take() {
            self.kill(process);
        }
        if self.pods[pod].kept {
            (self.pods[pod].ended, self.pods[pod].terminating) = (true, true);
            return self.changed();
        }
        self.pods[pod].gone = true;
        let name = self.pods[pod].name.clone();
        self.log.note(self.now, || format!("pod {name} is gone"));
        self.changed();
    }

    /// Its object need not stay any more.
    pub(super) fn let_go(&mut self, pod: usize) {
        let kept = std::mem::take(&mut self.pods[pod].kept);
        if kept && self.pods[pod].terminating && self.pods[pod].ended {
            self.gone(pod);
        }
    }

    /// The pod of that name that exists.
    pub(super) fn pod(&self, name: &str) -> Option<usize> {
        self.pods.iter().position(|pod| pod.name == name && !pod.gone)
    }

    /// The operator's watches and the owner's controller see it.
    fn changed(&mut self) {
        self.ring();
        self.at(2, Event::Reconcile);
    }

    pub(super) fn reconcile(&mut self) {
        match self.scenario.owner {
            OwnerKind::Bare => {}
            OwnerKind::Deployment if self.pinned => self.pinned(),
            OwnerKind::Deployment => self.replica_set(),
            OwnerKind::StatefulSet | OwnerKind::Shrinking => self.stateful_set(),
        }
    }

    /// Whatever the Deployment has is its old ReplicaSet's from now on, and the target the new one's.
    pub(super) fn pin(&mut self, plan: Option<&Plan>) {
        let target = plan.and_then(|plan| self.target(plan));
        if self.pinned {
            return;
        }
        for (index, pod) in self.pods.iter_mut().enumerate() {
            pod.preferred = pod.owned && Some(index) != target;
        }
        if let Some(target) = target {
            self.pods[target].owned = true;
        }
        self.pinned = true;
        self.at(1, Event::Reconcile);
    }

    /// The new ReplicaSet goes, and what it has.
    pub(super) fn unpin(&mut self) {
        if !std::mem::take(&mut self.pinned) {
            return;
        }
        for pod in 0..self.pods.len() {
            if self.pods[pod].owned && !std::mem::take(&mut self.pods[pod].preferred) {
                self.pods[pod].owned = false;
                self.delete_pod(pod, 20);
            }
        }
    }

    /// The new ReplicaSet has one pod; once it is ready, the old one has none.
    fn pinned(&mut self) {
        let mine = |pod: &Pod| pod.owned && pod.alive();
        let new = self.pods.iter().find(|pod| mine(pod) && !pod.preferred);
        let Some(new) = new else {
            let name = format!("consumer-h{}", self.pods.len());
            let pod = self.create_pod(&name, NODES[1], None);
            self.pods[pod].owned = true;
            return;
        };
        if !new.ready() {
            return;
        }
        let old = self.pods.iter().position(|pod| mine(pod) && pod.preferred);
        if let Some(old) = old {
            let grace = self.rng.u64(self.tempo.owner_grace.clone());
            self.delete_pod(old, grace);
        }
    }

    /// One replica; the not-ready go first, then the one with the lowest deletion cost.
    fn replica_set(&mut self) {
        let mine: Vec<usize> =
            (0..self.pods.len()).filter(|&p| self.pods[p].owned && self.pods[p].alive()).collect();
        match mine.as_slice() {
            [] => {
                let name = format!("consumer-h{}", self.pods.len());
                let pod = self.create_pod(&name, NODES[0], None);
                self.pods[pod].owned = true;
            }
            [_] => {}
            several => {
                let rank = |&&pod: &&usize| {
                    let found = &self.pods[pod];
                    (found.ready(), !found.preferred, found.uid)
                };
                if let Some(&last) = several.iter().min_by_key(rank) {
                    let grace = self.rng.u64(self.tempo.owner_grace.clone());
                    self.delete_pod(last, grace);
                }
            }
        }
    }

    /// The pod of the set's name: a failed one is deleted, a missing one is made if admission lets it.
    fn stateful_set(&mut self) {
        if self.smaller {
            if let Some(last) = self.pod(SOURCE) {
                let grace = self.rng.u64(self.tempo.owner_grace.clone());
                self.delete_pod(last, grace);
            }
            return;
        }
        if let Some(there) = self.pod(SOURCE) {
            if self.pods[there].ended {
                self.delete_pod(there, 10);
            }
            return;
        }
        if self.held || self.now < self.admission_silent_until {
            return self.at(20, Event::Reconcile);
        }
        let pod = self.create_pod(SOURCE, NODES[0], None);
        self.pods[pod].owned = true;
    }
}
