//! Who may do what.
//!
//! | who | may | told by |
//! |---|---|---|
//! | the operator | give orders | a token of its account, audience `ms2m-agent` |
//! | the sender that an order names | send the one checkpoint of that transfer | a token made for that transfer, or that of the Job's pod; audience `ms2m-agent` |
//! | anybody | ask whether the agent is alive | |
//!
//! Every token is shown to the API server (`TokenReview`): it has to be valid now, and made for agents. A
//! stolen token of an application is not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};
use shadow_checkpoint::agent::wire::{AUDIENCE, NAMESPACE, Sender};
use tokio::sync::Semaphore;

use crate::answer::No;

/// Where a pod's name is in a review's answer.
const POD: &str = "authentication.kubernetes.io/pod-name";
/// For an answer of the API server.
const REVIEW: Duration = Duration::from_secs(10);
/// How long an answer holds.
const GOOD_FOR: Duration = Duration::from_secs(10);
const BAD_FOR: Duration = Duration::from_mins(1);
/// Longer tokens are none.
const LONGEST: usize = 16 << 10;
/// Reviews at a time: who knocks often must not make the API server work.
const REVIEWS: usize = 4;
const REMEMBERED: usize = 1024;

/// Whom a token is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// As the API server names users.
    pub user: String,
    /// The pod that the token is bound to.
    pub pod: Option<String>,
}

/// Why nobody is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// The token is no good.
    Refused(String),
    /// There was no answer.
    Silent(String),
}

/// Tells whom a token is of.
#[async_trait::async_trait]
pub trait Reviewer: Send + Sync {
    /// The identity behind `token`, if it is valid and made for agents.
    async fn review(&self, token: &str) -> Result<Identity, Unknown>;
}

#[async_trait::async_trait]
impl Reviewer for Client {
    async fn review(&self, token: &str) -> Result<Identity, Unknown> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.clone());
        let params = PostParams::default();
        let asked = tokio::time::timeout(REVIEW, api.create(&params, &review)).await;
        let silent = |why: String| Unknown::Silent(format!("the API server did not tell: {why}"));
        let answer = asked
            .map_err(|_| silent(format!("no answer within {} s", REVIEW.as_secs())))?
            .map_err(|error| silent(error.to_string()))?;
        identity(answer)
    }
}

/// An API server that knows nothing of audiences would let every token in: it names none.
fn identity(review: TokenReview) -> Result<Identity, Unknown> {
    let status = review.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "it is not valid".to_owned());
        return Err(Unknown::Refused(why));
    }
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return Err(Unknown::Refused(format!("it is not made for {AUDIENCE}")));
    }
    let user = status.user.unwrap_or_default();
    let pod = user.extra.and_then(|extra| extra.get(POD)?.first().cloned());
    Ok(Identity { user: user.username.unwrap_or_default(), pod })
}

type Answer = Result<Identity, String>;

/// Looks at the tokens of requests.
pub(crate) struct Gate {
    reviewer: Arc<dyn Reviewer>,
    reviews: Semaphore,
    known: Mutex<HashMap<[u8; 32], (Instant, Answer)>>,
}

/// A token whose owner is known.
#[derive(Debug)]
pub(crate) struct Known {
    identity: Identity,
    sha256: String,
}

impl Gate {
    pub(crate) fn new(reviewer: Arc<dyn Reviewer>) -> Self {
        Self { reviewer, reviews: Semaphore::new(REVIEWS), known: Mutex::default() }
    }

    /// Whose request this is.
    pub(crate) async fn who(&self, headers: &HeaderMap) -> Result<Known, No> {
        let no = |why: &str| No::refused(StatusCode::UNAUTHORIZED, why);
        let header = headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
        let token = header
            .and_then(|header| header.strip_prefix("Bearer "))
            .filter(|token| !token.is_empty() && token.len() <= LONGEST)
            .ok_or_else(|| no("a request to an agent needs a bearer token for ms2m-agent"))?;
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let answer = match self.remembered(&digest) {
            Some(answer) => answer,
            None => self.ask(token, digest).await?,
        };
        let identity = answer.map_err(|why| no(&format!("the token is refused: {why}")))?;
        Ok(Known { identity, sha256: hexadecimal(&digest) })
    }

    async fn ask(&self, token: &str, digest: [u8; 32]) -> Result<Answer, No> {
        let unavailable = |why: String| No::passing(StatusCode::SERVICE_UNAVAILABLE, why);
        let permit = self.reviews.acquire().await;
        let _permit = permit.map_err(|_| unavailable("the agent is ending".to_owned()))?;
        // Somebody else may have asked meanwhile.
        if let Some(answer) = self.remembered(&digest) {
            return Ok(answer);
        }
        let answer = match self.reviewer.review(token).await {
            Ok(identity) => Ok(identity),
            Err(Unknown::Refused(why)) => Err(why),
            Err(Unknown::Silent(why)) => return Err(unavailable(why)),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(digest, (Instant::now(), answer.clone()));
        Ok(answer)
    }

    fn remembered(&self, digest: &[u8; 32]) -> Option<Answer> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, answer) = known.get(digest)?;
        let holds = if answer.is_ok() { GOOD_FOR } else { BAD_FOR };
        (since.elapsed() < holds).then(|| answer.clone())
    }
}

impl Known {
    /// Only the operator gives orders.
    pub(crate) fn must_be_operator(&self) -> Result<(), No> {
        let operator = format!("system:serviceaccount:{NAMESPACE}:shadow-operator");
        if self.identity.user == operator {
            return Ok(());
        }
        let user = &self.identity.user;
        Err(No::refused(StatusCode::FORBIDDEN, format!("{user} may not give orders to an agent")))
    }

    /// Whether this is who was to send a checkpoint. Comparing digests may take as long as it likes:
    /// who measures it learns about the digest of a token, not about the token, and the API server
    /// has taken the one that was shown.
    pub(crate) fn is(&self, sender: &Sender) -> bool {
        match sender {
            Sender::Token { sha256 } => *sha256 == self.sha256,
            Sender::Pod { namespace, prefix } => {
                let account = format!("system:serviceaccount:{namespace}:");
                let pod = self.identity.pod.as_deref().unwrap_or_default();
                self.identity.user.starts_with(&account) && is_of_job(pod, prefix)
            }
        }
    }
}

/// A Job's pod is named after it: `job-` and what makes names differ. `job-b-` begins so, too, and is
/// another Job's.
fn is_of_job(pod: &str, prefix: &str) -> bool {
    let rest = pod.strip_prefix(prefix).filter(|rest| !rest.is_empty());
    prefix.len() > 1
        && prefix.ends_with('-')
        && rest.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reviewed(status: &serde_json::Value) -> Result<Identity, Unknown> {
        let review = json!({ "spec": {}, "status": status });
        identity(serde_json::from_value(review).unwrap())
    }

    #[test]
    fn a_token_for_others_is_nobodys() {
        let user = json!({ "username": "u", "extra": { POD: ["job-a-x"] } });
        let good = json!({ "authenticated": true, "audiences": [AUDIENCE], "user": user });
        let known = Identity { user: "u".to_owned(), pod: Some("job-a-x".to_owned()) };
        assert_eq!(reviewed(&good), Ok(known));
        for bad in [
            json!({}),
            json!({ "authenticated": false, "error": "expired" }),
            json!({ "authenticated": true, "user": user }),
            json!({ "authenticated": true, "audiences": ["api"], "user": user }),
        ] {
            assert!(matches!(reviewed(&bad), Err(Unknown::Refused(_))), "{bad}");
        }
    }

    #[test]
    fn a_sender_is_told_by_its_token_or_its_pod() {
        let known = |user: &str, pod: Option<&str>| Known {
            identity: Identity { user: user.to_owned(), pod: pod.map(str::to_owned) },
            sha256: "aa".to_owned(),
        };
        let token = |sha256: &str| Sender::Token { sha256: sha256.to_owned() };
        assert!(known("u", None).is(&token("aa")) && !known("u", None).is(&token("ab")));
        let job = |prefix: &str| Sender::Pod { namespace: "shop".into(), prefix: prefix.into() };
        let pod = known("system:serviceaccount:shop:default", Some("job-a-x"));
        assert!(pod.is(&job("job-a-")));
        for others in ["job-b-", "job-", "job", "job-a", "job-a-x", "-", ""] {
            assert!(!pod.is(&job(others)), "{others}");
        }
        assert!(!known("system:serviceaccount:shop2:default", Some("job-a-x")).is(&job("job-a-")));
        assert!(!known("system:serviceaccount:shop:default", None).is(&job("job-a-")));
    }
}
