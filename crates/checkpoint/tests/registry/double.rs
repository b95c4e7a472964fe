//! An in-memory registry that can be told to misbehave.
//!
//! It keeps what it got of a part that broke off, and says so when asked.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};

use crate::tokens::TokenServer;

/// Whom it lets in.
#[derive(Clone)]
pub enum Lock {
    Open,
    /// Those with this `Authorization`.
    Basic(&'static str),
    /// Those with a token of this server.
    Tokens(TokenServer),
}

/// What it does differently, as registries do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Habits {
    /// Takes an upload in one part only.
    pub one_part: bool,
    /// Wants this many bytes in every part but the last.
    pub least_part: u64,
}

/// One misbehaviour; it is used up by the first request it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The beginning of an upload is answered with this status.
    Begin(StatusCode),
    /// The content of an upload is answered with this status.
    Upload(StatusCode),
    /// The content of an upload is taken, and never answered.
    Stall,
    /// It forgets all uploads, before a part comes.
    Forget,
    /// The content of an upload is answered as if its token had ended.
    Expired,
    /// A finished upload is never answered.
    Silence,
    /// A stored blob is given another digest.
    WrongDigest,
    /// A manifest is answered with this status.
    Manifest(StatusCode),
    /// The place of an upload is this.
    Elsewhere(String),
    /// Any request is answered with a challenge for tokens that can't be had.
    Bearer,
}

#[derive(Default)]
struct Contents {
    faults: VecDeque<Fault>,
    /// Locked while a part comes in.
    uploads: HashMap<u64, Arc<tokio::sync::Mutex<Upload>>>,
    blobs: HashMap<String, u64>,
    manifests: HashMap<String, Bytes>,
    begun: u64,
    received: u64,
    parts: Vec<u64>,
}

#[derive(Default)]
struct Upload {
    hash: Sha256,
    size: u64,
    /// Sizes of its parts.
    parts: Vec<u64>,
}

/// See the module. Blobs are hashed and counted, not kept.
#[derive(Clone)]
pub struct Double {
    contents: Arc<Mutex<Contents>>,
    lock: Lock,
    habits: Habits,
    pub address: SocketAddr,
}

impl Double {
    pub async fn start(lock: Lock) -> Self {
        Self::start_with(lock, Habits::default()).await
    }

    pub async fn start_with(lock: Lock, habits: Habits) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let double = Self {
            contents: Arc::default(),
            lock,
            habits,
            address: listener.local_addr().unwrap(),
        };
        let router = Router::new().fallback(answer).with_state(double.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        double
    }

    pub fn misbehave(&self, faults: impl IntoIterator<Item = Fault>) {
        self.contents.lock().unwrap().faults.extend(faults);
    }

    /// How many uploads were begun.
    pub fn begun(&self) -> u64 {
        self.contents.lock().unwrap().begun
    }

    /// How many uploads were begun and neither finished nor given up.
    pub fn open(&self) -> usize {
        self.contents.lock().unwrap().uploads.len()
    }

    /// Bytes of content received.
    pub fn received(&self) -> u64 {
        self.contents.lock().unwrap().received
    }

    /// Bytes of every part that was answered well.
    pub fn parts(&self) -> Vec<u64> {
        self.contents.lock().unwrap().parts.clone()
    }

    fn upload(&self, place: u64) -> Option<Arc<tokio::sync::Mutex<Upload>>> {
        self.contents.lock().unwrap().uploads.get(&place).cloned()
    }

    fn fault(&self, fits: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let faults = &mut self.contents.lock().unwrap().faults;
        if faults.front().is_some_and(fits) { faults.pop_front() } else { None }
    }
}

async fn answer(State(double): State<Double>, request: Request) -> Response {
    if double.fault(|fault| *fault == Fault::Bearer).is_some() {
        let challenge = "Bearer realm=\"/token\",service=\"registry\"";
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
    }
    if let Err(challenge) = let_in(&double.lock, &request) {
        read(request).await;
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
    }
    let path = request.uri().path().to_owned();
    if path == "/v2/" {
        StatusCode::OK.into_response()
    } else if let Some((_, place)) = path.split_once("/blobs/uploads/") {
        upload(&double, place.parse().ok(), request).await
    } else if let Some((_, digest)) = path.split_once("/blobs/") {
        match double.contents.lock().unwrap().blobs.get(digest) {
            Some(size) => [(header::CONTENT_LENGTH, *size)].into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    } else {
        manifest(&double, &path, request).await
    }
}

/// Takes what comes with a request that is refused: an answer before it could get lost with the
/// connection, which would end while the client still sends.
async fn read(request: Request) {
    let mut chunks = request.into_body().into_data_stream();
    while let Some(Ok(_)) = chunks.next().await {}
}

/// Whether the request may pass, else with what it might.
fn let_in(lock: &Lock, request: &Request) -> Result<(), String> {
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
    match lock {
        Lock::Open if given.is_none() => Ok(()),
        Lock::Basic(expected) if given == Some(*expected) => Ok(()),
        Lock::Open | Lock::Basic(_) => Err("Basic realm=\"double\"".to_owned()),
        Lock::Tokens(server) => {
            let scope = scope(request);
            match given.and_then(|given| given.strip_prefix("Bearer ")) {
                Some(token) if server.knows(token, scope.as_deref()) => Ok(()),
                _ => Err(server.challenge(scope.as_deref())),
            }
        }
    }
}

/// What a token must allow for this request.
fn scope(request: &Request) -> Option<String> {
    let path = request.uri().path().trim_start_matches("/v2/");
    let repository = path.split("/blobs/").next().unwrap().split("/manifests/").next();
    let action = match *request.method() {
        Method::GET | Method::HEAD => "pull",
        Method::DELETE => "delete",
        _ => "pull,push",
    };
    let repository = repository.filter(|name| !name.is_empty())?;
    Some(format!("repository:{repository}:{action}"))
}

async fn upload(double: &Double, place: Option<u64>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches("/v2/");
    let repository = path.split("/blobs/").next().unwrap().to_owned();
    let looks = *request.method() == Method::GET;
    let digest = request.uri().query().and_then(|query| query.split_once("digest="));
    let digest = digest.map(|(_, digest)| digest.replace("%3A", ":"));
    if let (Some(place), &Method::DELETE) = (place, request.method()) {
        double.contents.lock().unwrap().uploads.remove(&place);
        return StatusCode::NO_CONTENT.into_response();
    }
    if let Some(Fault::Begin(status)) = double.fault(|fault| matches!(fault, Fault::Begin(_))) {
        return status.into_response();
    }
    let place = place.unwrap_or_else(|| {
        let mut contents = double.contents.lock().unwrap();
        contents.begun += 1;
        let place = contents.begun;
        contents.uploads.insert(place, Arc::default());
        place
    });
    let sends = matches!(*request.method(), Method::PATCH | Method::PUT);
    if sends && let Err(answer) = take(double, place, request).await {
        return answer;
    }
    let Some(kept) = double.upload(place) else { return StatusCode::NOT_FOUND.into_response() };
    let size = kept.lock().await.size;
    let mut headers = HeaderMap::new();
    let location = match double.fault(|fault| matches!(fault, Fault::Elsewhere(_))) {
        Some(Fault::Elsewhere(place)) => place,
        _ => format!("/v2/{repository}/blobs/uploads/{place}?state=x"),
    };
    headers.insert(header::LOCATION, location.parse().unwrap());
    headers.insert(header::RANGE, format!("0-{}", size.saturating_sub(1)).parse().unwrap());
    let Some(digest) = digest else {
        if double.habits.least_part > 0 {
            headers.insert("oci-chunk-min-length", double.habits.least_part.into());
        }
        let status = if looks { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED };
        return (status, headers).into_response();
    };
    let hash = std::mem::take(&mut kept.lock().await.hash);
    let found = format!("sha256:{:x}", hash.finalize());
    double.contents.lock().unwrap().uploads.remove(&place);
    if found != digest {
        let document = r#"{"errors":[{"code":"DIGEST_INVALID","message":"not what was sent"}]}"#;
        return (StatusCode::BAD_REQUEST, document).into_response();
    }
    double.contents.lock().unwrap().blobs.insert(digest.clone(), size);
    if double.fault(|fault| *fault == Fault::Silence).is_some() {
        std::future::pending::<()>().await;
    }
    let wrong = double.fault(|fault| *fault == Fault::WrongDigest).is_some();
    let stored = if wrong { format!("sha256:{}", "0".repeat(64)) } else { digest };
    headers.insert("docker-content-digest", stored.parse().unwrap());
    (StatusCode::CREATED, headers).into_response()
}

/// Takes a part in, and what it got of one that breaks off.
async fn take(double: &Double, place: u64, request: Request) -> Result<(), Response> {
    if let Some(Fault::Upload(status)) = double.fault(|fault| matches!(fault, Fault::Upload(_))) {
        read(request).await;
        return Err(status.into_response());
    }
    if double.fault(|fault| *fault == Fault::Stall).is_some() {
        std::future::pending::<()>().await;
    }
    if double.fault(|fault| *fault == Fault::Forget).is_some() {
        double.contents.lock().unwrap().uploads.clear();
    }
    let Some(upload) = double.upload(place) else {
        read(request).await;
        return Err(StatusCode::NOT_FOUND.into_response());
    };
    let mut upload = upload.lock().await;
    let finishes = *request.method() == Method::PUT;
    let said = request.headers().get(header::CONTENT_RANGE).map(|range| range.to_str().unwrap());
    let start = said.map(|range| range.split_once('-').unwrap().0.parse::<u64>().unwrap());
    let small = upload.parts.last().is_some_and(|part| *part < double.habits.least_part);
    let another = double.habits.one_part && !upload.parts.is_empty();
    if !finishes && (start.is_some_and(|start| start != upload.size) || small || another) {
        read(request).await;
        return Err(StatusCode::RANGE_NOT_SATISFIABLE.into_response());
    }
    let before = upload.size;
    let scope = scope(&request);
    let expired = double.fault(|fault| !finishes && *fault == Fault::Expired).is_some();
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST.into_response())?;
        double.contents.lock().unwrap().received += chunk.len() as u64;
        if !expired {
            upload.hash.update(&chunk);
            upload.size += chunk.len() as u64;
        }
    }
    if let (true, Lock::Tokens(server)) = (expired, &double.lock) {
        let challenge = [(header::WWW_AUTHENTICATE, server.challenge(scope.as_deref()))];
        return Err((StatusCode::UNAUTHORIZED, challenge).into_response());
    }
    if !finishes {
        let part = upload.size - before;
        upload.parts.push(part);
        double.contents.lock().unwrap().parts.push(part);
    }
    Ok(())
}

async fn manifest(double: &Double, path: &str, request: Request) -> Response {
    if let Some(Fault::Manifest(status)) = double.fault(|fault| matches!(fault, Fault::Manifest(_)))
    {
        return status.into_response();
    }
    let (repository, reference) = path.split_once("/manifests/").unwrap();
    match *request.method() {
        Method::PUT => {
            let content = axum::body::to_bytes(request.into_body(), 4 << 20).await.unwrap();
            let digest = format!("sha256:{:x}", Sha256::digest(&content));
            let manifests = &mut double.contents.lock().unwrap().manifests;
            manifests.insert(format!("{repository}@{reference}"), content.clone());
            manifests.insert(format!("{repository}@{digest}"), content);
            (StatusCode::CREATED, [("docker-content-digest", digest)]).into_response()
        }
        Method::DELETE => {
            let manifests = &mut double.contents.lock().unwrap().manifests;
            let Some(gone) = manifests.get(&format!("{repository}@{reference}")).cloned() else {
                return StatusCode::NOT_FOUND.into_response();
            };
            manifests.retain(|_, content| *content != gone);
            StatusCode::ACCEPTED.into_response()
        }
        _ => match double
            .contents
            .lock()
            .unwrap()
            .manifests
            .get(&format!("{repository}@{reference}"))
        {
            Some(content) => {
                let digest = format!("sha256:{:x}", Sha256::digest(content));
                ([("docker-content-digest", digest)], content.clone()).into_response()
            }
            None => StatusCode::NOT_FOUND.into_response(),
        },
    }
}
