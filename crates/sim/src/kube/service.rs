//! The way from a `kube::Client` into the store: HTTP requests in, HTTP responses out.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryFutureExt};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};

use super::call::{Call, Verb};
use super::faults::{Failure, Fate};
use super::kinds::{KINDS, Kind};
use super::object::{number, text};
use super::patch::Style;
use super::refusal::Refusal;
use super::selector::Selector;
use super::store::{Key, Scope, line};
use super::write::{Deletion, Part};
use super::{Inner, Kube};

type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// One client's connection to the API server.
#[derive(Clone)]
pub struct Connection {
    pub(super) kube: Kube,
    pub(super) client: String,
}

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<Answer>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Response<Answer>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // A request that has been sent reaches the server whatever becomes of its sender.
        let answer = tokio::spawn(answer(self.clone(), request));
        Box::pin(async move { answer.await.map_err(io::Error::other)? })
    }
}

async fn answer(connection: Connection, request: Request<Body>) -> io::Result<Response<Answer>> {
    let Connection { kube, client } = connection;
    let (head, body) = request.into_parts();
    let body = body.collect_bytes().map_err(io::Error::other).await?;
    let query = head.uri.query().unwrap_or_default();
    if let Some(resources) = resources(head.uri.path()) {
        return Ok(whole(200, &resources));
    }
    let mut call = match Call::parse(&client, &head.method, head.uri.path(), query) {
        Ok(call) => call,
        Err(refusal) => return Ok(refused(&refusal)),
    };
    let (fate, latency) = kube.with(|inner| (inner.fate(&mut call), inner.config.latency));
    pause(latency).await;
    if let Fate::Refuse(failure) = fate {
        return fail(failure).await;
    }
    let style = match head.headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes)
    {
        Some(b"application/strategic-merge-patch+json") => Style::Strategic,
        Some(b"application/apply-patch+yaml") => Style::Apply,
        _ => Style::Merge,
    };
    let first = carry_out(&kube, &call, &body, style).await;
    match fate {
        Fate::Lose(failure) => return fail(failure).await,
        Fate::Late(by) => pause(by).await,
        Fate::Twice => drop(carry_out(&kube, &call, &body, style).await),
        Fate::Pass | Fate::Refuse(_) => {}
    }
    Ok(first.unwrap_or_else(|refusal| refused(&refusal)))
}

/// What a group of the API serves, if `path` asks for that.
fn resources(path: &str) -> Option<Value> {
    let asked = path.trim_matches('/').strip_prefix("apis/")?;
    let kinds = KINDS.iter().filter(|kind| kind.api_version() == asked);
    let resources: Vec<Value> = kinds
        .map(|kind| {
            json!({
                "name": kind.plural, "singularName": "", "kind": kind.kind,
                "namespaced": kind.namespaced, "verbs": [],
            })
        })
        .collect();
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": asked,
            "resources": resources,
        })
    })
}

async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

async fn fail(failure: Failure) -> io::Result<Response<Answer>> {
    match failure {
        Failure::Answer(refusal) => return Ok(refused(&refusal)),
        Failure::Reset => {}
        Failure::Silence(duration) => pause(duration).await,
    }
    Err(io::Error::new(io::ErrorKind::ConnectionReset, "connection reset by peer"))
}

async fn carry_out(
    kube: &Kube,
    call: &Call,
    body: &Bytes,
    style: Style,
) -> Result<Response<Answer>, Refusal> {
    match call.verb {
        Verb::Watch => watch(kube, call),
        Verb::Checkpoint => {
            let (archive, frozen) = kube.with(|inner| inner.checkpoint(call))?;
            pause(frozen).await;
            Ok(whole(200, &json!({ "items": [archive] })))
        }
        _ => {
            let body: Value = if body.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(body)
                    .map_err(|error| Refusal::bad_request(error.to_string()))?
            };
            kube.with(|inner| inner.carry_out(call, body, style))
        }
    }
}

fn watch(kube: &Kube, call: &Call) -> Result<Response<Answer>, Refusal> {
    let scope = scope(call)?;
    let since = match call.parameter("resourceVersion") {
        "" | "0" => None,
        version => Some(version.parse().map_err(|_| Refusal::bad_request("bad resourceVersion"))?),
    };
    let until = tokio::time::sleep(call.patience());
    // A server that can't go on where the client was says so in the stream.
    let events = match kube.with(|inner| inner.store.watch(scope, since)) {
        Ok(events) => events.boxed(),
        Err(refusal) => futures::stream::iter([line("ERROR", &refusal.status())]).boxed(),
    };
    let frames = events.take_until(until).map(|bytes| Ok(Frame::data(bytes)));
    Ok(response(200, StreamBody::new(frames).boxed_unsync()))
}

fn scope(call: &Call) -> Result<Scope, Refusal> {
    Ok(Scope {
        plural: call.plural,
        namespace: call.namespace.clone(),
        selector: Selector::parse(
            call.parameter("labelSelector"),
            call.parameter("fieldSelector"),
        )?,
    })
}

impl Inner {
    fn fate(&mut self, call: &mut Call) -> Fate {
        let id = (call.client.clone(), call.verb, call.plural, call.subresource.clone());
        let count = self.calls.entry(id).or_insert(0);
        call.nth = *count;
        *count += 1;
        self.requests += 1;
        self.faults.fate(call)
    }

    fn carry_out(
        &mut self,
        call: &Call,
        body: Value,
        style: Style,
    ) -> Result<Response<Answer>, Refusal> {
        let store = &mut self.store;
        let namespace = call.namespace.as_deref().unwrap_or_default();
        let key = Key::new(call.plural, namespace, call.name.as_deref().unwrap_or_default());
        let part = match call.subresource.as_deref() {
            None => Part::Object,
            Some("status") => Part::Status,
            Some(other) => return Err(Refusal::not_found(format!("subresource {other}"))),
        };
        let object: Arc<Value> = match call.verb {
            Verb::Get => store.get(&key).cloned().ok_or_else(|| Refusal::not_found(&key))?,
            Verb::List => return Ok(list(call, store.version(), &store.list(&scope(call)?))),
            Verb::Create => {
                self.policies.admit(call.plural, namespace, &body)?;
                let created = match call.parameter("dryRun") {
                    "All" => store.try_out(call.plural, namespace, body)?,
                    _ => store.create(call.plural, namespace, body)?,
                };
                return Ok(whole(201, &created));
            }
            Verb::Replace => store.replace(&key, body, part)?,
            Verb::Patch if style == Style::Apply && store.get(&key).is_none() => {
                store.create(call.plural, namespace, body)?
            }
            Verb::Patch => store.patch(&key, &body, style, part)?,
            Verb::Delete => store.delete(&key, &deletion(call, &body))?,
            Verb::Watch | Verb::Checkpoint => return Err(Refusal::bad_request("not a write")),
        };
        Ok(whole(200, &object))
    }
}

fn list(call: &Call, version: u64, items: &[Arc<Value>]) -> Response<Answer> {
    let (kind, api_version) =
        Kind::named(call.plural).map(|kind| (kind.kind, kind.api_version())).unwrap_or_default();
    let items: Vec<&Value> = items.iter().map(|item| &**item).collect();
    whole(
        200,
        &json!({
            "kind": format!("{kind}List"), "apiVersion": api_version,
            "metadata": { "resourceVersion": version.to_string() }, "items": items,
        }),
    )
}

fn deletion(call: &Call, body: &Value) -> Deletion {
    let given = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    Deletion {
        uid: given(text(body, "/preconditions/uid")),
        version: given(text(body, "/preconditions/resourceVersion")),
        grace: number(body, "/gracePeriodSeconds")
            .or_else(|| call.parameter("gracePeriodSeconds").parse().ok()),
        propagation: given(text(body, "/propagationPolicy"))
            .or_else(|| given(call.parameter("propagationPolicy"))),
    }
}

fn refused(refusal: &Refusal) -> Response<Answer> {
    whole(refusal.code, &refusal.status())
}

fn whole(code: u16, body: &Value) -> Response<Answer> {
    response(code, Full::new(Bytes::from(body.to_string())).boxed_unsync())
}

fn response(code: u16, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}
