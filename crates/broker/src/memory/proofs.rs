//! The three proofs that a queue is empty, the first that applies, as the real adapter has them.

use std::collections::HashMap;

use shadow_protocol::broker::{Counts, Emptiness};

use super::core::{Broker, ConnectionId, Content, Kind, Refusal};
use super::topology::{Obstacle, count};
use crate::proof::{Proof, Sample, Statistics};

/// The slow proofs under way, by queue.
#[derive(Debug, Default)]
pub struct Proofs(HashMap<String, Proof>);

impl Proofs {
    /// The broker's word that a queue holds neither ready nor unacknowledged messages.
    pub fn empty<M: Content>(
        &mut self,
        core: &mut Broker<M>,
        client: ConnectionId,
        queue: &str,
    ) -> Result<Emptiness, Obstacle> {
        let (kind, ready, unacknowledged) = inside(core, queue)?;
        let told = match kind {
            Kind::Classic => Some((ready, unacknowledged) == (0, 0)),
            Kind::Quorum if core.blind(queue) => None,
            Kind::Quorum => match count(core, client, queue)?.unwrap_or_default() {
                Counts { ready: 0, consumers: 0 } => Some(true),
                counts => (counts.ready > 0).then_some(false),
            },
        };
        if let Some(empty) = told {
            self.0.remove(queue);
            return Ok(verdict(empty));
        }
        let ready = core.declare_passive(client, queue)?.ready;
        let statistics = core.statistics(queue)?.map(|it| Statistics {
            reductions: it.reductions,
            ready: it.ready,
            unacknowledged: it.unacknowledged,
        });
        Ok(self.0.entry(queue.to_owned()).or_default().take(Sample { ready, statistics }))
    }
}

/// The broker's word that nothing of a queue is unacknowledged by who has left it to those that `stay`.
pub fn quiet<M: Content>(
    core: &mut Broker<M>,
    client: ConnectionId,
    queue: &str,
    stay: u32,
) -> Result<Emptiness, Obstacle> {
    let (kind, _, unacknowledged) = inside(core, queue)?;
    Ok(verdict(match kind {
        Kind::Classic => unacknowledged == 0,
        Kind::Quorum => {
            !core.blind(queue)
                && count(core, client, queue)?.is_some_and(|counts| counts.consumers == stay)
        }
    }))
}

/// A queue's type and live figures, ready and unacknowledged.
fn inside<M>(core: &Broker<M>, queue: &str) -> Result<(Kind, u64, u64), Refusal> {
    let found = core.queue(queue).zip(core.figures(queue));
    let (options, figures) = found.ok_or_else(|| Refusal::no_queue(queue))?;
    Ok((options.kind, figures.ready, figures.unacknowledged))
}

fn verdict(holds: bool) -> Emptiness {
    if holds { Emptiness::Proved } else { Emptiness::Unproved }
}
