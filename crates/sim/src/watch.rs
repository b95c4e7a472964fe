//! Looks on while a world goes its way, and keeps what a person wants to know of it afterwards.

use shadow_protocol::phase::Phase;

use crate::record::Recorder;
use crate::world::{BEGIN, World};

/// Time between two samples of the lag, in milliseconds.
const SAMPLE: u64 = 20;

/// What was seen. Times are in milliseconds since the world began.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The states stored, and when.
    pub steps: Vec<(u64, Phase)>,
    /// When, and how many messages the source and the copy had not applied.
    pub lags: Vec<(u64, u64, u64)>,
    /// Begin and end of the longest time in which messages waited and no copy applied one.
    pub pause: (u64, u64),
    /// Highest age of a message when the source applied it.
    pub source_age: u64,
    /// The same, up to the latest checkpoint.
    pub checkpoint_age: u64,
    /// Highest age of a message when the copy applied it.
    pub copy_age: u64,
    /// The events, if they are recorded.
    pub recorder: Option<Recorder>,
    /// By publisher: up to which number it had published, and when.
    published: Vec<Vec<(u64, u64)>>,
    last_applied: u64,
    next_sample: u64,
}

impl Watch {
    pub fn new(publishers: u8, recorder: Option<Recorder>) -> Self {
        // One more publishes in transactions.
        let published = vec![Vec::new(); usize::from(publishers) + 1];
        Self { recorder, published, ..Self::default() }
    }

    pub fn published(&mut self, publisher: u8, last: u64, now: u64) {
        self.published[usize::from(publisher)].push((last, now));
    }

    /// A copy has applied messages: up to `before`, and now up to `after`, by publisher.
    pub fn applied(&mut self, now: u64, copy: bool, before: &[u64], after: &[u64]) {
        let new = before.iter().zip(after).zip(&self.published).filter(|((b, a), _)| a > b);
        let when = |next: u64, times: &[(u64, u64)]| {
            let at = times.partition_point(|(last, _)| *last < next);
            times.get(at).map(|(_, when)| *when)
        };
        let Some(oldest) = new.filter_map(|((b, _), times)| when(b + 1, times)).min() else {
            return;
        };
        let age = if copy { &mut self.copy_age } else { &mut self.source_age };
        *age = now.saturating_sub(oldest).max(*age);
        let waited_since = self.last_applied.max(oldest);
        if now > BEGIN && now.saturating_sub(waited_since) > self.pause.1 - self.pause.0 {
            self.pause = (waited_since, now);
        }
        self.last_applied = now;
    }

    /// The operator has stored a state.
    pub fn stored(&mut self, now: u64, phase: &Phase) {
        if matches!(phase, Phase::Transferring { .. }) {
            self.checkpoint_age = self.source_age;
        }
        self.steps.push((now, phase.clone()));
    }

    /// After every event.
    pub fn look(&mut self, world: &mut World) {
        let now = world.now();
        if now >= self.next_sample {
            let (source, copy) = world.lags();
            self.lags.push((now, source, copy));
            self.next_sample = now + SAMPLE;
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.look(world);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_the_longest_wait_and_nobody_waits_for_what_is_not_there() {
        let mut watch = Watch::new(1, None);
        for (last, at) in (1..).zip([60, 70, 900]) {
            watch.published(0, last, at);
        }
        watch.applied(62, false, &[0], &[1]);
        watch.applied(300, false, &[1], &[2]);
        watch.applied(905, false, &[2], &[3]);
        assert_eq!(watch.pause, (70, 300));
        assert_eq!(watch.source_age, 230);
    }
}
