//! A migration waits for its turn before it looks at anything, and holds nothing meanwhile.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use shadow_protocol::observation::{Node, Observation, Turn};
use shadow_protocol::phase::{Phase, State};
use shadow_protocol::spec::Spec;

use super::{Memory, Migration, REPORT_EVERY};

/// How often a status is written whose migration waits for its turn: many may wait for the same.
const TELL_EVERY: Duration = Duration::from_secs(5);

impl Migration {
    /// What there is to see, once it is its turn; absent while it is not known yet who goes on.
    pub(super) async fn observe_in_turn(
        &mut self,
        spec: &Spec,
        state: &State,
    ) -> Option<Observation> {
        if state.phase != Phase::Pending {
            return Some(self.observe(spec, state).await);
        }
        let context = self.context.clone();
        let mut turn = context.turns.ask(&self.object)?;
        if let Turn::Since(_) = turn {
            let seen = self.observe(spec, state).await;
            // Every node that takes the pod may be full.
            turn = context.turns.ask(&self.object)?;
            if let Turn::Since(_) = turn {
                return Some(Observation { turn, ..seen });
            }
        }
        self.let_go().await;
        Some(Observation { turn, ..Observation::default() })
    }

    /// Where the user has named no node: keeps one that has room, and tells which have none.
    pub(super) fn choose(&self, spec: &Spec, pod: &Pod, nodes: &mut [Node]) {
        let source = pod.spec.as_ref().and_then(|it| it.node_name.as_deref()).unwrap_or_default();
        if spec.target_node.is_none() {
            self.context.turns.choose(&spec.uid, source, nodes);
        }
    }

    /// As if nobody had looked at it yet.
    async fn let_go(&mut self) {
        if let Some(session) = self.memory.session.take() {
            session.close().await;
        }
        self.memory = Memory { reported: self.memory.reported, ..Memory::default() };
    }

    /// How often the status is written because of its words.
    pub(super) fn report_every(seen: &Observation) -> Duration {
        match seen.turn {
            Turn::Waits(_) => TELL_EVERY,
            Turn::Since(_) => REPORT_EVERY,
        }
    }

    /// Until there is something to do, or to say that was not said because it was too soon.
    pub(super) fn until_told(&self, wake: Duration) -> Duration {
        let told = self.memory.reported.map(|at| at.elapsed());
        if told.is_some_and(|ago| ago < TELL_EVERY) { wake.min(TELL_EVERY) } else { wake }
    }
}
