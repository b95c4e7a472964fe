//! Moves what is left in one queue to the end of another, batch by batch, as the real adapter does:
//! each batch is confirmed there before it is acknowledged here.

use std::time::Duration;

use tokio::time::Instant;

use super::Wire;
use super::core::{
    Broker, ConnectionId, ConsumeOptions, ConsumerId, Content, Delivery, Publish, Published,
    Refusal,
};
use super::session::{DEADLINE, MemorySession, label};
use crate::{Error, Session as _};

/// Messages under way at a time.
const BATCH: u64 = 100;
/// Between two batches.
const PAUSE: Duration = Duration::from_millis(1);

impl<M: Wire> MemorySession<M> {
    pub(super) async fn move_messages(&self, from: &str, to: &str) -> Result<(), Error> {
        let attempted = || format!("moving what is left in {from:?} to {to:?}");
        let mover = self.broker.connect(&self.peer, &label(&self.migration));
        let mover = mover.ok_or_else(|| self.refused(attempted(), Refusal::ConnectionGone))?;
        // Deposed meanwhile, perhaps before there was this connection to close.
        let done = if self.alive() {
            self.move_over(mover, from, to).await
        } else {
            Err(self.refused(attempted(), Refusal::ConnectionGone))
        };
        self.broker.with(|core| core.close(mover));
        done
    }

    async fn move_over(&self, mover: ConnectionId, from: &str, to: &str) -> Result<(), Error> {
        let attempted = || format!("moving what is left in {from:?} to {to:?}");
        let refused = |refusal| self.refused(attempted(), refusal);
        if self.left(from)? == 0 {
            return Ok(());
        }
        let options = ConsumeOptions { prefetch: BATCH, ..ConsumeOptions::default() };
        let consumer = self.broker.with(|core| core.consume(mover, from, options));
        let consumer = consumer.map_err(refused)?;
        let begun = Instant::now();
        loop {
            let batch = self.broker.with(|core| hand_over(core, mover, consumer, to));
            match batch.map_err(refused)? {
                Batch::Lost => return Err(self.failed(attempted(), "no queue gets them")),
                Batch::Blocked => {
                    tokio::time::sleep(DEADLINE).await;
                    return Err(self.timeout(attempted()));
                }
                Batch::Confirmed(None) if self.left(from)? == 0 => return Ok(()),
                Batch::Confirmed(last) => {
                    // The moment at which a crash leaves the batch in both queues.
                    tokio::time::sleep(PAUSE).await;
                    if let Some(tag) = last {
                        let acknowledged = self.broker.with(|core| core.ack(consumer, tag, true));
                        acknowledged.map_err(refused)?;
                    }
                }
            }
            if begun.elapsed() >= DEADLINE {
                return Err(self.timeout(attempted()));
            }
        }
    }

    fn left(&self, queue: &str) -> Result<u64, Error> {
        let counts = self.broker.with(|core| self.count(core, queue))?;
        Ok(counts.map_or(0, |counts| counts.ready))
    }
}

/// What became of a batch.
enum Batch {
    /// All are there; the last one's tag.
    Confirmed(Option<u64>),
    /// Nobody gets them.
    Lost,
    /// An alarm holds them up.
    Blocked,
}

fn hand_over<M: Content>(
    core: &mut Broker<M>,
    mover: ConnectionId,
    consumer: ConsumerId,
    to: &str,
) -> Result<Batch, Refusal> {
    let mut last = None;
    while let Some(Delivery { tag, first, count, .. }) = core.take(consumer, BATCH)? {
        match core.publish(mover, Publish { count, ..Publish::one("", to, first) })? {
            Published::Arrived(1..) => last = Some(tag + count - 1),
            Published::Blocked => return Ok(Batch::Blocked),
            Published::Arrived(0) | Published::Pending(_) => return Ok(Batch::Lost),
        }
    }
    Ok(Batch::Confirmed(last))
}

/// Moves all at one instant, on the connection `mover`, which is to be closed then. Whether all are
/// there: otherwise an alarm holds the last batch up, or nobody gets it, and it returns to its queue.
pub fn move_at_once<M: Content>(
    core: &mut Broker<M>,
    mover: ConnectionId,
    from: &str,
    to: &str,
) -> Result<bool, Refusal> {
    if core.counts(from).is_none_or(|counts| counts.ready == 0) {
        return Ok(true);
    }
    let options = ConsumeOptions { prefetch: BATCH, ..ConsumeOptions::default() };
    let consumer = core.consume(mover, from, options)?;
    while let Batch::Confirmed(last) = hand_over(core, mover, consumer, to)? {
        let Some(tag) = last else { return Ok(true) };
        core.ack(consumer, tag, true)?;
    }
    Ok(false)
}
