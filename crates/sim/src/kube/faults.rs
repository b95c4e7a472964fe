//! What can go wrong between a client and the API server.

use std::time::Duration;

use super::call::Call;
use super::refusal::Refusal;

/// What the client gets instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An error from the server.
    Answer(Refusal),
    /// The connection ends.
    Reset,
    /// Nothing for so long, then the connection ends.
    Silence(Duration),
}

/// What becomes of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    Pass,
    /// It is answered so much later.
    Late(Duration),
    /// It fails and has no effect.
    Refuse(Failure),
    /// It has its effect, but the answer is lost.
    Lose(Failure),
    /// It reaches the server twice; the client sees the first answer.
    Twice,
}

/// Decides about every request.
pub trait Faults: Send {
    /// The fate of `call`.
    fn fate(&mut self, call: &Call) -> Fate;
}

/// Nothing goes wrong.
pub struct NoFaults;

impl Faults for NoFaults {
    fn fate(&mut self, _: &Call) -> Fate {
        Fate::Pass
    }
}

impl<F: FnMut(&Call) -> Fate + Send> Faults for F {
    fn fate(&mut self, call: &Call) -> Fate {
        self(call)
    }
}
