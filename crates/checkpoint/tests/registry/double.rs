//! An in-memory registry that can be told to misbehave.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};

/// One misbehaviour; it is used up by the first request it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The beginning of an upload is answered with this status.
    Begin(StatusCode),
    /// The content of an upload is answered with this status.
    Upload(StatusCode),
    /// The content of an upload is taken, and never answered.
    Stall,
    /// A stored blob is given another digest.
    WrongDigest,
    /// A manifest is answered with this status.
    Manifest(StatusCode),
    /// The place of an upload is this.
    Elsewhere(String),
    /// Any request is answered with a challenge for tokens.
    Bearer,
}

#[derive(Default)]
struct Contents {
    faults: VecDeque<Fault>,
    uploads: HashMap<u64, Upload>,
    blobs: HashMap<String, u64>,
    manifests: HashMap<String, Bytes>,
    begun: u64,
    received: u64,
}

#[derive(Default)]
struct Upload {
    hash: Sha256,
    size: u64,
}

/// See the module. Blobs are hashed and counted, not kept.
#[derive(Clone)]
pub struct Double {
    contents: Arc<Mutex<Contents>>,
    authorization: Option<&'static str>,
    pub address: SocketAddr,
}

impl Double {
    pub async fn start(authorization: Option<&'static str>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let double = Self {
            contents: Arc::default(),
            authorization,
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

    fn fault(&self, fits: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let faults = &mut self.contents.lock().unwrap().faults;
        if faults.front().is_some_and(fits) { faults.pop_front() } else { None }
    }
}

async fn answer(State(double): State<Double>, request: Request) -> Response {
    if double.fault(|fault| *fault == Fault::Bearer).is_some() {
        let challenge = "Bearer realm=\"https://tokens.example/\",service=\"registry\"";
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
    }
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
    if given != double.authorization {
        let challenge = "Basic realm=\"double\"";
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

async fn upload(double: &Double, place: Option<u64>, request: Request) -> Response {
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
        contents.uploads.insert(place, Upload::default());
        place
    });
    let sends = matches!(*request.method(), Method::PATCH | Method::PUT);
    if sends && let Err(status) = take(double, place, request.into_body()).await {
        return status.into_response();
    }
    let mut headers = HeaderMap::new();
    let location = match double.fault(|fault| matches!(fault, Fault::Elsewhere(_))) {
        Some(Fault::Elsewhere(place)) => place,
        _ => format!("/v2/r/blobs/uploads/{place}?state=x"),
    };
    headers.insert(header::LOCATION, location.parse().unwrap());
    let Some(digest) = digest else { return (StatusCode::ACCEPTED, headers).into_response() };
    let mut contents = double.contents.lock().unwrap();
    let upload = contents.uploads.remove(&place).unwrap();
    let found = format!("sha256:{:x}", upload.hash.finalize());
    if found != digest {
        let document = r#"{"errors":[{"code":"DIGEST_INVALID","message":"not what was sent"}]}"#;
        return (StatusCode::BAD_REQUEST, document).into_response();
    }
    contents.blobs.insert(digest.clone(), upload.size);
    drop(contents);
    let wrong = double.fault(|fault| *fault == Fault::WrongDigest).is_some();
    let stored = if wrong { format!("sha256:{}", "0".repeat(64)) } else { digest };
    headers.insert("docker-content-digest", stored.parse().unwrap());
    (StatusCode::CREATED, headers).into_response()
}

async fn take(double: &Double, place: u64, body: Body) -> Result<(), StatusCode> {
    if let Some(Fault::Upload(status)) = double.fault(|fault| matches!(fault, Fault::Upload(_))) {
        return Err(status);
    }
    if double.fault(|fault| *fault == Fault::Stall).is_some() {
        std::future::pending::<()>().await;
    }
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        let mut contents = double.contents.lock().unwrap();
        contents.received += chunk.len() as u64;
        let upload = contents.uploads.get_mut(&place).ok_or(StatusCode::NOT_FOUND)?;
        upload.hash.update(&chunk);
        upload.size += chunk.len() as u64;
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
