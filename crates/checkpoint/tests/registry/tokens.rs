//! A token server for registries: its tokens are signed as docker-registry wants them (ES256, with the
//! certificate in the header).
#![allow(dead_code, reason = "not every test binary has use for all of it")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertifiedKey, KeyPair, SigningKey as _};
use serde_json::{Value, json};

/// How it behaves.
#[derive(Debug, Clone)]
pub struct Manners {
    /// The `Authorization` it wants.
    pub wants: Option<&'static str>,
    /// The life of a token in seconds, as it says.
    pub life: u64,
    /// The name under which it gives the token.
    pub name: &'static str,
    /// Where it sends everyone.
    pub redirect: Option<String>,
    /// The realm that the challenge names, if it is not this server.
    pub realm: Option<String>,
}

impl Default for Manners {
    fn default() -> Self {
        Self { wants: None, life: 300, name: "token", redirect: None, realm: None }
    }
}

/// See the module.
#[derive(Clone)]
pub struct TokenServer {
    pub address: SocketAddr,
    manners: Manners,
    key: Arc<CertifiedKey<KeyPair>>,
    issued: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A request for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub query: String,
    pub authorization: Option<String>,
}

impl TokenServer {
    pub async fn start(manners: Manners) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            manners,
            key: Arc::new(rcgen::generate_simple_self_signed(["tokens".to_owned()]).unwrap()),
            issued: Arc::default(),
            asked: Arc::default(),
        };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        server
    }

    /// Its certificate, for the registry that is to trust it.
    pub fn certificate(&self) -> String {
        self.key.cert.pem()
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Takes all tokens back.
    pub fn revoke(&self) {
        self.issued.lock().unwrap().clear();
    }

    /// Whether `token` is one of its own, for `scope`.
    pub fn knows(&self, token: &str, scope: Option<&str>) -> bool {
        let issued = self.issued.lock().unwrap();
        let Some(given) = issued.get(token) else { return false };
        scope.is_none_or(|scope| given.split(' ').any(|given| given == scope))
    }

    /// What a registry says to those without a token.
    pub fn challenge(&self, scope: Option<&str>) -> String {
        let own = format!("http://{}/token", self.address);
        let realm = self.manners.realm.as_ref().unwrap_or(&own);
        let scope = scope.map(|scope| format!(",scope=\"{scope}\"")).unwrap_or_default();
        format!("Bearer realm=\"{realm}\",service=\"r\"{scope}")
    }

    fn issue(&self, scopes: &[String]) -> String {
        let access: Vec<Value> = scopes.iter().map(|scope| access(scope)).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let serial = self.asked.lock().unwrap().len();
        let claims = json!({
            "iss": "tests", "aud": "r", "sub": "name", "jti": serial.to_string(), "access": access,
            "nbf": now.as_secs(), "iat": now.as_secs(),
            "exp": (now + Duration::from_mins(5)).as_secs(),
        });
        let header =
            json!({ "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(self.key.cert.der())] });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = plain(&self.key.signing_key.sign(signed.as_bytes()).unwrap());
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        self.issued.lock().unwrap().insert(token.clone(), scopes.join(" "));
        token
    }
}

async fn answer(State(server): State<TokenServer>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let authorization = request.headers().get(header::AUTHORIZATION);
    let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
    let asked = Asked { query: query.clone(), authorization: authorization.clone() };
    server.asked.lock().unwrap().push(asked);
    if let Some(place) = &server.manners.redirect {
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, place)]).into_response();
    }
    if server.manners.wants.is_some_and(|wants| authorization.as_deref() != Some(wants)) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let url = url::Url::parse(&format!("http://t/?{query}")).unwrap();
    let scopes = url.query_pairs().filter(|(name, _)| name == "scope");
    let scopes: Vec<String> = scopes.map(|(_, scope)| scope.into_owned()).collect();
    let token = server.issue(&scopes);
    json!({ server.manners.name: token, "expires_in": server.manners.life })
        .to_string()
        .into_response()
}

/// A scope, as the token says it.
fn access(scope: &str) -> Value {
    let (kind, rest) = scope.split_once(':').unwrap();
    let (name, actions) = rest.rsplit_once(':').unwrap();
    json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() })
}

/// The two numbers of an ECDSA signature, 32 bytes each, from its DER form.
fn plain(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut numbers = Vec::new();
    while let [2, length, more @ ..] = rest {
        let (number, after) = more.split_at(usize::from(*length));
        let number = &number[number.len().saturating_sub(32)..];
        numbers.extend(vec![0; 32 - number.len()]);
        numbers.extend(number);
        rest = after;
    }
    numbers
}
