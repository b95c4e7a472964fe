//! The invariants of `docs/handoff.md`, as properties of a situation.

use shadow_protocol::broker::Binding;
use shadow_protocol::names::control_queue;
use shadow_protocol::phase::{Phase, SwitchStep};

use super::application::{Ledger, Process};
use super::situation::{SOURCE, Situation, TARGET, Who};
use super::wire::{Body, EXCHANGE, Place};

/// Whose state will survive, as the situation stands.
fn survivor(situation: &Situation) -> Who {
    let source_stays = situation.source.as_ref().is_some_and(|pod| !pod.terminating);
    match situation.phase() {
        // It may have read the order that nobody takes back; until then both are as good.
        Phase::Finalizing { step: SwitchStep::Hand, .. } if situation.target.is_none() => {
            Who::Source
        }
        Phase::Finalizing { step: SwitchStep::Replace(None), .. } if !source_stays => Who::Target,
        _ if situation.committed() => Who::Target,
        _ => Who::Source,
    }
}

/// What the survivor has applied by now.
fn ledger(situation: &Situation, who: Who) -> Option<&Ledger> {
    let pod = situation.pod(who);
    pod.map(|pod| pod.process.as_ref().map_or(&pod.image.ledger, |it| &it.memory.ledger))
        .or(situation.bereaved.as_ref().filter(|_| who == Who::Source))
}

/// The queues from which a copy gets what it has not applied.
fn sources(who: Who) -> &'static [Place] {
    match who {
        Who::Source => &[Place::Q, Place::S1, Place::S2],
        // What comes to S1 so late is moved to `Q` at the end.
        Who::Target => &[Place::Q, Place::S1],
    }
}

/// 1 and 5: each published message is applied to, or still reachable by, the survivor. Of a source
/// that has died, who survives shows only at the [end](clean).
pub fn whole(situation: &Situation) -> bool {
    if situation.bereaved.is_some() {
        return true;
    }
    let who = survivor(situation);
    let Some(ledger) = ledger(situation, who) else { return false };
    let waits = |publisher: u8, number: u8| {
        let sought = Body::Event { publisher, number };
        sources(who).iter().any(|&place| {
            let trailing = situation.trailing.get(&(publisher, place));
            situation.wire.contents(place.name()).any(|body| body == sought)
                || trailing.is_some_and(|trailing| trailing.contains(&number))
        })
    };
    published(situation)
        .all(|(publisher, number)| ledger.has(publisher, number) || waits(publisher, number))
}

fn published(situation: &Situation) -> impl Iterator<Item = (u8, u8)> {
    let counts = situation.published.iter().zip(0_u8..);
    counts.flat_map(|(&count, publisher)| (0..count).map(move |number| (publisher, number)))
}

/// 2: nothing was applied twice, by a copy that survives.
pub fn once(situation: &Situation) -> bool {
    excused(situation) || ledger(situation, survivor(situation)).is_none_or(|it| !it.doubled)
}

/// 3: nothing was applied after a later message of the same publisher.
pub fn ordered(situation: &Situation) -> bool {
    excused(situation)
        || situation.late
        || ledger(situation, survivor(situation)).is_none_or(|it| !it.overtaken)
}

/// A fresh process wakes on `Q` before it is told where the rest is.
fn excused(situation: &Situation) -> bool {
    situation.bereaved.is_some() && survivor(situation) == Who::Source
}

/// 4: at most one copy consumes `Q`.
pub fn alone(situation: &Situation) -> bool {
    let on_q = |process: &Process| process.consuming == Some(Place::Q) && process.going.is_none();
    let copies = [Who::Source, Who::Target].map(|who| situation.process(who));
    copies.into_iter().flatten().filter(|process| on_q(process)).count() <= 1
        || situation.bereaved.is_some()
}

/// 5: before the commit point the source is there, after it the target.
pub fn kept(situation: &Situation) -> bool {
    let who = survivor(situation);
    let stays = situation.pod(who).is_some_and(|pod| !pod.terminating);
    stays || (who == Who::Source && situation.bereaved.is_some())
}

/// 6: at the end nothing is left over, and the survivor gets from `Q` alone, as ever, whatever it
/// has not applied.
pub fn clean(situation: &Situation) -> bool {
    let (who, gone) = match situation.phase() {
        Phase::Completed { .. } => (Who::Target, SOURCE),
        Phase::Failed { .. } => (Who::Source, TARGET),
        _ => return true,
    };
    let wire = &situation.wire;
    let other = match who {
        Who::Source => &situation.target,
        Who::Target => &situation.source,
    };
    wire.left().is_empty()
        && other.is_none()
        && wire.counts(&control_queue(gone)).is_none()
        && wire.bindings() == [Binding::plain(EXCHANGE)]
        && situation.process(who).is_none_or(|process| returns(situation, process, who))
        && recovers(situation, who)
}

/// It consumes `Q`, or will when it has obeyed: side queues are gone, and who is sent to one that is
/// gone goes to `Q`.
fn returns(situation: &Situation, process: &Process, who: Who) -> bool {
    process.consuming == Some(Place::Q)
        || process.going.is_some()
        || situation.wire.orders(who.pod()) > 0
}

/// When it has worked off `Q` and what trails there, it has applied everything once and in order.
fn recovers(situation: &Situation, who: Who) -> bool {
    let Some(ledger) = ledger(situation, who) else { return false };
    let mut ledger = ledger.clone();
    for body in situation.wire.contents(Place::Q.name()) {
        if let Body::Event { publisher, number } = body {
            ledger.apply(publisher, number);
        }
    }
    for ((publisher, place), numbers) in &situation.trailing {
        if *place == Place::Q {
            for number in numbers {
                ledger.apply(*publisher, *number);
            }
        }
    }
    let excused = excused(situation);
    published(situation).all(|(publisher, number)| ledger.has(publisher, number))
        && (excused || !ledger.doubled)
        && (excused || situation.late || !ledger.overtaken)
}
