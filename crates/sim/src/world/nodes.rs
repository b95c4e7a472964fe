//! Nodes that lose power: what runs there is gone at once, and nobody can tell. The broker waits for
//! heartbeats, the API server shows what it was told last, and what is deleted stays.

use super::{Event, NODES, World};
use crate::cluster::Pod;

impl World {
    /// How long until the power of a pod's node returns, if it has none.
    pub(super) fn unpowered(&self, pod: usize) -> Option<u64> {
        let node = NODES.iter().position(|node| *node == self.pods[pod].node)?;
        self.unpowered_until[node].checked_sub(self.now).filter(|wait| *wait > 0)
    }

    pub(super) fn node_gone(&mut self, node: usize) {
        let lasts = self.rng.u64(5..900);
        let until = &mut self.unpowered_until[node];
        *until = (*until).max(self.now + lasts);
        self.at(lasts, Event::PowerReturns(node));
        if let Some(job) = self.job.as_mut().filter(|_| node == 0) {
            // Its pod is begun anew.
            job.done_at = job.done_at.max(self.now + lasts + self.scenario.transfer);
        }
        for pod in self.on(node) {
            match &self.pods[pod] {
                found if !found.powered() => {}
                found if found.ours => self.mourn(pod),
                found if found.process.is_some() && !self.committed() => self.bereave(pod),
                _ => {}
            }
            self.last_words(pod);
            let Some(process) = self.pods[pod].process.take() else { continue };
            self.pods[pod].unpowered = true;
            let connection = self.processes[process].take().and_then(|it| it.connection);
            let noticed = self.rng.u64(5..400);
            if let Some(connection) = connection {
                self.pods[pod].unnoticed = Some(connection);
                self.at(noticed, Event::Noticed(connection));
            }
        }
    }

    /// The kubelet starts the application's containers afresh; a copy is restored once only.
    pub(super) fn power_returns(&mut self, node: usize) {
        if self.now < self.unpowered_until[node] {
            return;
        }
        for pod in self.on(node) {
            if !std::mem::take(&mut self.pods[pod].unpowered) {
                continue;
            }
            self.pods[pod].probed = false;
            if self.pods[pod].ours {
                self.end(pod);
            } else {
                // A source that comes to itself at the switch takes messages along.
                self.forgiven |= self.committed();
                self.bereaved |= self.committed();
                self.at(self.scenario.start, Event::Started(pod));
            }
        }
        self.ring();
    }

    /// The source is about to go. If its copy has died and there is no sign of it yet, nobody could
    /// have known.
    pub(super) fn replaced(&mut self) {
        let unnoticed = |pod: &Pod| {
            let connected = pod.unnoticed.is_some_and(|it| self.broker.connected(it));
            pod.ours && pod.alive() && pod.unpowered && connected
        };
        if self.pods.iter().any(unnoticed) {
            (self.bereaved, self.forgiven) = (true, true);
        }
    }

    /// The pods of a node.
    fn on(&self, node: usize) -> Vec<usize> {
        let here = |pod: &usize| !self.pods[*pod].gone && self.pods[*pod].node == NODES[node];
        (0..self.pods.len()).filter(here).collect()
    }
}
