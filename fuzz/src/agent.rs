//! What node agents read of other people's, like the targets of `lib.rs`
//! (`crates/agent/tests/corpus.rs`).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::{Component, Path};
use std::task::Poll;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use futures::stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use shadow_agent::Patience;
use shadow_agent::answer::No;
use shadow_agent::form::Form;
use shadow_checkpoint::agent::wire::{
    Arrived, Expected, ForgetOrder, LoadOrder, PushOrder, Refusal, SendOrder, is_name,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
}

/// Container, archive and digest.
type Upload = (String, Vec<u8>, String);

/// An upload: a line that is its `Content-Type`, and its body. In whichever pieces it comes, the same is
/// read, and of fields nothing that is too long.
pub fn form(input: &[u8]) -> bool {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (kind, body) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    let Ok(kind) = HeaderValue::from_bytes(kind) else { return false };
    let read = |size: usize| taken(RUNTIME.with(|it| it.block_on(upload(&kind, body, size))));
    let whole = read(body.len().max(1));
    // Of two things that are wrong another may be seen first.
    let size = 1 + input.len() % 61;
    assert_eq!(read(size), whole, "in pieces of {size} bytes");
    let Some((container, archive, digest)) = whole else { return false };
    assert!(container.len() <= 1024 && digest.len() <= 1024, "{container:?} {digest:?}");
    let is_archive = |part: &[u8]| part == archive;
    let sent = archive.is_empty() || body.windows(archive.len()).any(is_archive);
    assert!(sent, "nobody has sent this archive: {archive:?}");
    true
}

/// What is taken. What is refused is in one sentence.
fn taken(read: Result<Upload, No>) -> Option<Upload> {
    let No { status, why, passing: _ } = match read {
        Ok(upload) => return Some(upload),
        Err(no) => no,
    };
    assert!(status == 400 && why.len() < 200, "{status} {why}");
    assert!(!why.contains(char::is_control), "{why:?}");
    None
}

async fn upload(kind: &HeaderValue, body: &[u8], size: usize) -> Result<Upload, No> {
    let mut pieces: VecDeque<Bytes> = body.chunks(size).map(Bytes::copy_from_slice).collect();
    let mut comes = false;
    // As from a connection: after a piece there is nothing for a while, and then the next, or the end.
    let body = stream::poll_fn(move |cx| {
        comes = !comes;
        if comes {
            return Poll::Ready(pieces.pop_front().map(Ok::<_, Infallible>));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    let mut request = Request::new(Body::from_stream(body));
    request.headers_mut().insert(CONTENT_TYPE, kind.clone());
    let mut form = Form::of(request, Patience::default()).await?;
    let container = form.container().await?;
    let (to, mut pieces) = mpsc::channel::<Bytes>(1);
    let gather = async {
        let mut archive = Vec::new();
        while let Some(piece) = pieces.recv().await {
            archive.extend_from_slice(&piece);
        }
        archive
    };
    let (read, archive) = tokio::join!(form.archive(to), gather);
    read?;
    let digest = form.digest().await?;
    Ok((container, archive, digest))
}

/// A transfer's name, an order or an answer. A name leads nowhere. What was read survives being written,
/// and of an order nothing is passed over.
pub fn wire(input: &[u8]) -> bool {
    let taken = [
        name(input),
        order::<Expected>(input),
        order::<SendOrder>(input),
        order::<PushOrder>(input),
        order::<LoadOrder>(input),
        order::<ForgetOrder>(input),
        again::<Arrived>(input).is_some(),
        again::<Refusal>(input).is_some(),
    ];
    taken.contains(&true)
}

fn name(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let is_name = is_name(text);
    if is_name {
        let parts: Vec<_> = Path::new(text).components().collect();
        assert_eq!(parts, [Component::Normal(text.as_ref())]);
        assert!(text.len() <= 64 && text.is_ascii() && !text.starts_with('-'), "{text}");
    }
    is_name
}

fn order<T: Serialize + DeserializeOwned>(input: &[u8]) -> bool {
    let Some(written) = again::<T>(input) else { return false };
    let said: Value = serde_json::from_slice(input).unwrap();
    assert_eq!(words(&said), words(&written), "{said}");
    true
}

/// As it is written once it was read.
fn again<T: Serialize + DeserializeOwned>(input: &[u8]) -> Option<Value> {
    let read: T = serde_json::from_slice(input).ok()?;
    let written = serde_json::to_string(&read).unwrap();
    let again: T = serde_json::from_str(&written).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), written);
    serde_json::from_str(&written).ok()
}

/// All that is said in it, wherever.
fn words(value: &Value) -> Vec<String> {
    let mut words: Vec<String> = match value {
        Value::Null => Vec::new(),
        Value::Array(values) => values.iter().flat_map(self::words).collect(),
        Value::Object(fields) => fields.values().flat_map(self::words).collect(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![value.to_string()],
    };
    words.sort();
    words
}
