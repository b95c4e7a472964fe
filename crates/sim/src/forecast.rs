//! A prediction: what would it cost to move this consumer?
//!
//! It runs the real protocol with the operator's own settings in the simulated world, at the pace of
//! the load that is asked about. The same options give the same forecast, byte for byte. It is as
//! good as [`Durations`], and says nothing of a cluster's hiccups.

mod options;
mod outcome;

use serde::Serialize;
use shadow_protocol::phase::Phase;
use shadow_protocol::spec::{IdentitySwap, ReplayMode, Strategy};

pub use options::{FAULTS, FaultAt, Options};
pub use outcome::{Invariant, Outcome, Result as Ending};

use crate::application::Habits;
use crate::log::Log;
use crate::record::{Header, Recorder, Recording, VERSION};
use crate::scenario::{Fault, OwnerKind, Scenario};
use crate::tempo::{Durations, Pace, Tempo};
use crate::verdict::Verdict;
use crate::watch::Watch;
use crate::world::{BEGIN, World};

/// Points of the lag curve.
const POINTS: u64 = 60;

/// What a migration would be like. Times are in milliseconds since it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// What was asked.
    pub options: Options,
    /// How it would be done; absent when it was refused.
    pub mode: Option<Mode>,
    /// Each phase that was passed, in order.
    pub phases: Vec<Span>,
    /// Each step that was passed, in order; `phase/step` where a phase has several.
    pub steps: Vec<Span>,
    /// All of it.
    pub total_ms: u64,
    /// The longest time in which messages waited and no copy applied one.
    pub pause: Pause,
    /// Highest age of a message when it was applied to the state that survives.
    pub max_age_ms: u64,
    /// Messages that wait to be applied to the state that survives: the most in each of 60 equal
    /// parts of the migration.
    pub lag: Vec<LagPoint>,
    /// How it ended, and what became of the messages.
    pub verdict: Outcome,
}

/// The handoff's mode, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mode {
    /// The mode.
    pub mode: ReplayMode,
    /// What the status would say.
    pub reason: String,
}

/// A named time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// The phase or step.
    pub name: String,
    /// When it began.
    pub begin_ms: u64,
    /// How long it took.
    pub for_ms: u64,
}

/// How long the consumer stood still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    /// When it began.
    pub begin_ms: u64,
    /// How long it took.
    pub for_ms: u64,
    /// Its share of the steps.
    pub parts: Vec<Span>,
}

/// A point of the lag curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LagPoint {
    /// When.
    pub at_ms: u64,
    /// Messages that wait.
    pub waiting: u64,
}

/// A fault was asked for at a step that the migration does not come to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("this migration does not come to a step {step:?}; its steps are {}", .steps.join(", "))]
pub struct NoSuchStep {
    /// What was asked for.
    pub step: String,
    /// The steps it comes to.
    pub steps: Vec<String>,
}

/// What would happen.
pub fn forecast(options: &Options) -> Result<Forecast, NoSuchStep> {
    predict(options, None).map(|(forecast, _)| forecast)
}

/// The same, with the record of the run.
pub fn forecast_recorded(options: &Options) -> Result<(Forecast, Recording), NoSuchStep> {
    let (forecast, events) = predict(options, Some(Recorder::default()))?;
    let header = Header { version: VERSION, options: options.clone() };
    Ok((forecast, Recording { header, events }))
}

fn predict(
    options: &Options,
    recorder: Option<Recorder>,
) -> Result<(Forecast, Vec<crate::record::Event>), NoSuchStep> {
    let mut scenario = scenario(options);
    if let Some(fault) = &options.fault {
        // The run up to the fault is the run without it, so that one tells when the step begins.
        let (steps, _) = spans(&simulate(&scenario, options, None).0.steps);
        let found = steps.iter().find(|step| fault.is_at(&step.name));
        let Some(found) = found else {
            let names = steps.into_iter().map(|step| step.name);
            let final_step = |name: &String| name == "completed" || name == "failed";
            let steps = names.filter(|name| !final_step(name)).collect();
            return Err(NoSuchStep { step: fault.step.clone(), steps });
        };
        scenario.faults.push(Fault::World(found.begin_ms + 1, fault.kind));
    }
    let (mut watch, verdict) = simulate(&scenario, options, recorder);
    let events = watch.recorder.take().map(|recorder| recorder.events).unwrap_or_default();
    Ok((summary(options, &watch, verdict), events))
}

fn simulate(
    scenario: &Scenario,
    options: &Options,
    recorder: Option<Recorder>,
) -> (Watch, Verdict) {
    let tempo = Tempo {
        rate: Some(options.rate),
        // Known only where the application had something to do all the time.
        service_rate: (options.backlog > 0).then_some(1_000_000 / options.service_micros.max(1)),
        ..Tempo::real()
    };
    let log = if recorder.is_some() { Log::kept() } else { Log::default() };
    let watch = Watch::new(scenario.publishers, recorder);
    let mut world = World::watched(scenario.clone(), tempo, log, watch);
    world.play();
    let watch = world.watch.take().map(|watch| *watch).unwrap_or_default();
    (watch, Verdict::of(world))
}

fn scenario(options: &Options) -> Scenario {
    let durations = Durations::of(options.checkpoint_mb, options.bandwidth);
    let interval = u64::from(options.publishers) * 1_000 / options.rate.max(1);
    let pace = Pace::of(options.service_micros);
    Scenario {
        seed: options.seed,
        owner: match options.strategy {
            Strategy::ShadowPod => OwnerKind::Deployment,
            Strategy::Sequential => OwnerKind::StatefulSet,
        },
        swap: IdentitySwap::None,
        mode: options.replay_mode,
        publishers: options.publishers,
        interval,
        burst: 1,
        backlog: options.backlog,
        quorum: false,
        habits: Habits {
            prefetch: 32,
            batch: 1,
            service: pace.millis,
            bite: pace.messages.into(),
            rebinds: false,
            late_acks: 0,
            remembers: options.remembers_queue,
            attention: 10,
            reconnect: 50,
        },
        trail: 3,
        checkpoint: durations.checkpoint,
        transfer: durations.transfer,
        start: durations.start,
        faults: Vec::new(),
    }
}

fn summary(options: &Options, watch: &Watch, verdict: Verdict) -> Forecast {
    let (steps, total_ms) = spans(&watch.steps);
    let last = watch.steps.last().map(|(_, phase)| phase);
    let completed = matches!(last, Some(Phase::Completed { .. }));
    let plan = watch.steps.iter().find_map(|(_, phase)| phase.plan());
    let (from, to) = (since_begin(watch.pause.0), since_begin(watch.pause.1));
    let parts = steps.iter().filter_map(|step| {
        let begin_ms = step.begin_ms.max(from);
        let end = (step.begin_ms + step.for_ms).min(to);
        let for_ms = end.checked_sub(begin_ms).filter(|&for_ms| for_ms > 0)?;
        Some(Span { name: step.name.clone(), begin_ms, for_ms })
    });
    Forecast {
        options: options.clone(),
        mode: plan.map(|plan| Mode { mode: plan.mode, reason: plan.mode_reason.clone() }),
        phases: phases(&steps),
        total_ms,
        pause: Pause { begin_ms: from, for_ms: to - from, parts: parts.collect() },
        max_age_ms: if completed {
            watch.checkpoint_age.max(watch.copy_age)
        } else {
            watch.source_age
        },
        lag: curve(&watch.lags, completed, total_ms),
        verdict: Outcome::of(last, verdict),
        steps,
    }
}

fn since_begin(at: u64) -> u64 {
    at.saturating_sub(BEGIN)
}

/// The steps with their durations, and the end of the last. What is stored again is one step.
fn spans(stored: &[(u64, Phase)]) -> (Vec<Span>, u64) {
    let mut spans: Vec<Span> = Vec::new();
    for (at, phase) in stored {
        let (name, begin_ms) = (phase.step().name().to_owned(), since_begin(*at));
        if let Some(before) = spans.last_mut() {
            before.for_ms = begin_ms - before.begin_ms;
            if before.name == name {
                continue;
            }
        }
        spans.push(Span { name, begin_ms, for_ms: 0 });
    }
    let total = spans.last().map_or(0, |last| last.begin_ms);
    (spans, total)
}

fn phases(steps: &[Span]) -> Vec<Span> {
    let mut phases: Vec<Span> = Vec::new();
    for step in steps {
        let name = step.name.split('/').next().unwrap_or_default();
        match phases.last_mut() {
            Some(phase) if phase.name == name => phase.for_ms += step.for_ms,
            _ => phases.push(Span { name: name.to_owned(), ..step.clone() }),
        }
    }
    phases
}

fn curve(lags: &[(u64, u64, u64)], completed: bool, total: u64) -> Vec<LagPoint> {
    let mut last = 0;
    let mut lags = lags
        .iter()
        .map(|&(at, source, copy)| (since_begin(at), if completed { copy } else { source }));
    let mut next = lags.next();
    let mut points = Vec::new();
    for point in 0..POINTS {
        let end = (point + 1) * total / POINTS;
        let mut most = None;
        while let Some((_, waiting)) = next.filter(|&(at, _)| at <= end) {
            most = most.max(Some(waiting));
            last = waiting;
            next = lags.next();
        }
        points.push(LagPoint { at_ms: point * total / POINTS, waiting: most.unwrap_or(last) });
    }
    points
}
