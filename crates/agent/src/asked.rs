//! An order, as it comes in. Nothing of it is read before its giver is known, and not for ever then:
//! strangers must not fill the memory, or hold the connections.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use shadow_checkpoint::agent::wire::is_name;

use crate::Agent;
use crate::answer::No;

/// A secret has a megabyte at most, and an order at most one of these.
const LONGEST: usize = 2 << 20;

/// What the operator ordered.
pub(crate) struct Order<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Agent>> for Order<T> {
    type Rejection = No;

    async fn from_request(request: Request, agent: &Arc<Agent>) -> Result<Self, No> {
        agent.gate.who(request.headers()).await?.must_be_operator()?;
        let limit = agent.settings.patience.piece;
        let text = axum::body::to_bytes(request.into_body(), LONGEST);
        let text = tokio::time::timeout(limit, text).await.map_err(|_| {
            let why = format!("the order did not come within {limit:?}");
            No::passing(StatusCode::REQUEST_TIMEOUT, why)
        })?;
        let bad = |why| No::refused(StatusCode::BAD_REQUEST, why);
        let text = text
            .map_err(|_| bad(format!("the order broke off, or has more than {LONGEST} bytes")))?;
        let order = serde_json::from_slice(&text);
        order.map(Order).map_err(|error| bad(format!("the order is not understood: {error}")))
    }
}

/// Whether a transfer can be named so.
pub(crate) fn must_be_name(transfer: &str) -> Result<(), No> {
    if is_name(transfer) {
        return Ok(());
    }
    let why = "a transfer's name has lower-case letters, digits and dashes, 64 at most";
    Err(No::refused(StatusCode::BAD_REQUEST, why))
}
