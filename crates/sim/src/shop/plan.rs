//! What happens in the shop: the workload, the load, and what goes wrong. All of it follows from a
//! seed.

use fastrand::Rng;
use shadow_broker::memory;

use crate::scenario::{DEEP, Scenario, WORLD_FAULTS, WorldFault};

/// What becomes of one of the operator's requests to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestFault {
    /// 409: somebody else was quicker.
    Conflict,
    /// 429: too many requests.
    Busy,
    /// 500.
    Internal,
    /// 504, and it has had no effect.
    Timeout,
    /// The connection ends before it has an effect.
    Reset,
    /// It has its effect, and the connection ends.
    Lost,
    /// It has its effect, and 504 is the answer.
    LostToTimeout,
    /// No answer for half a minute; it has its effect, or not.
    Silence(bool),
    /// It reaches the server twice.
    Twice,
    /// It is answered so many milliseconds later.
    Late(u64),
}

/// One of each.
pub const REQUEST_FAULTS: [RequestFault; 11] = [
    RequestFault::Conflict,
    RequestFault::Busy,
    RequestFault::Internal,
    RequestFault::Timeout,
    RequestFault::Reset,
    RequestFault::Lost,
    RequestFault::LostToTimeout,
    RequestFault::Silence(true),
    RequestFault::Silence(false),
    RequestFault::Twice,
    RequestFault::Late(3_000),
];

/// A call of the operator, counted from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A request to the API server; watches are not counted.
    Request(u64),
    /// A call of a session at the broker.
    Broker(u64),
}

/// One thing that goes wrong, and when; times are milliseconds since the migration was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// To a request.
    Request(u64, RequestFault),
    /// To a call at the broker.
    Broker(u64, memory::Fault),
    /// The operator is killed.
    Killed {
        /// At this call.
        at: Call,
        /// Which has its effect, or not.
        reaches: bool,
        /// Another one starts so many milliseconds later.
        away: u64,
    },
    /// In the world, at this time.
    World(u64, WorldFault),
    /// The API server answers nobody, from then for so long.
    ApiDown(u64, u64),
    /// All watches end, and the past is forgotten.
    WatchesCut(u64),
    /// The operator that leads reaches the API server no more, from then for so long, and another one
    /// stands by.
    Isolated(u64, u64),
    /// Somebody deletes the Lease of the operator that leads.
    LeaseDeleted(u64),
    /// The ReplicaSets' controller sees no more of pods than what is there then, for so long: the watch of them
    /// comes back later than that of ReplicaSets when the API server was away.
    PodsSeenLate(u64, u64),
    /// Somebody takes the object's finalizer away and deletes it, at this time.
    Forced(u64),
    /// The same, and in that moment one of the same name is created.
    Recreated(u64),
    /// The object is removed so, and the operator is killed in that moment. Another one comes.
    Abandoned(u64),
    /// A node is cut off from then for so long: the target's, or the source's.
    NodeAway {
        /// The target's node.
        targets: bool,
        /// From then on.
        at: u64,
        /// For so long.
        lasts: u64,
    },
}

/// Everything a run depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Workload and load; its own faults are none.
    pub scenario: Scenario,
    /// How long controllers and kubelets take to react to a change, in milliseconds.
    pub reaction: u64,
    /// The operator looks for what migrations have left.
    pub janitor: bool,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// An ordinary migration has about so many requests and calls at the broker, and takes about so long
/// in milliseconds.
const REQUESTS: u64 = 90;
const CALLS: u64 = 700;
const DURATION: u64 = 25_000;

/// A slow application takes at least so many milliseconds per message.
const SLOW: u64 = 60;

impl Plan {
    /// The plan that follows from `seed`, with up to three faults.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut scenario = Scenario::quiet(&mut rng, seed).swapped(&mut rng);
        // The waits are the real ones, so that there is more time for every message.
        scenario.interval *= 4;
        scenario = match rng.u8(..100) {
            0 => scenario.slow(SLOW),
            1 => scenario.deep(DEEP),
            _ => scenario,
        };
        let count = rng.usize(0..=3);
        let hops = u64::from(scenario.hops());
        let faults = (0..count).map(|_| fault(&mut rng, hops)).collect();
        Self { scenario, reaction: rng.u64(1..=10), janitor: false, faults }
    }
}

/// One in a migration of so many `hops`.
fn fault(rng: &mut Rng, hops: u64) -> Fault {
    // The first calls are those that do the most.
    let early = |rng: &mut Rng, whole: u64| {
        let whole = whole * hops;
        let longest = if rng.bool() { whole } else { whole / 4 };
        rng.u64(..longest)
    };
    match rng.u8(..10) {
        0..=2 => Fault::Request(early(rng, REQUESTS), request_fault(rng)),
        3 => Fault::Broker(early(rng, CALLS), broker_fault(rng)),
        4 | 5 => {
            let at = if rng.bool() {
                Call::Request(early(rng, REQUESTS))
            } else {
                Call::Broker(early(rng, CALLS))
            };
            Fault::Killed { at, reaches: rng.bool(), away: rng.u64(10..15_000) }
        }
        6 | 7 => {
            let fault = WORLD_FAULTS[rng.usize(..WORLD_FAULTS.len())];
            Fault::World(early(rng, DURATION), fault)
        }
        8 if rng.bool() => {
            let (at, lasts) = (early(rng, DURATION), rng.u64(100..20_000));
            if rng.bool() { Fault::ApiDown(at, lasts) } else { Fault::Isolated(at, lasts) }
        }
        8 if rng.u8(..5) == 0 => Fault::LeaseDeleted(early(rng, DURATION)),
        8 if rng.u8(..3) == 0 => Fault::PodsSeenLate(early(rng, DURATION), rng.u64(100..20_000)),
        8 => Fault::WatchesCut(early(rng, DURATION)),
        _ => {
            let (targets, at) = (rng.u8(..3) > 0, early(rng, DURATION));
            Fault::NodeAway { targets, at, lasts: rng.u64(100..20_000) }
        }
    }
}

fn request_fault(rng: &mut Rng) -> RequestFault {
    match REQUEST_FAULTS[rng.usize(..REQUEST_FAULTS.len())] {
        RequestFault::Late(_) => RequestFault::Late(rng.u64(1..5_000)),
        fault => fault,
    }
}

fn broker_fault(rng: &mut Rng) -> memory::Fault {
    [memory::Fault::Before, memory::Fault::After, memory::Fault::Cut][rng.usize(..3)]
}
