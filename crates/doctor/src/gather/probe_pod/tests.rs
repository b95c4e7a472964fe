use super::*;

fn probe(container: Option<&str>) -> Probe<'static> {
    let container = container.map(str::to_owned);
    Probe { index: 0, node: "worker-1".to_owned(), image: "shadow:dev", container }
}

#[test]
fn a_probe_has_no_more_than_it_needs() {
    let value = pod("shadow-doctor-1", &probe(None));
    let container = &value["spec"]["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["capabilities"]["add"], json!(["SYS_CHROOT", "SYS_ADMIN", "NET_ADMIN"]));
    assert_eq!(security["privileged"], false);
    assert_eq!(container["volumeMounts"][0]["readOnly"], true);
    assert_eq!(container["args"], json!(["node-facts", "--root=/node"]));
    for shared in ["hostPID", "hostNetwork", "hostIPC"] {
        assert!(value["spec"].get(shared).is_none(), "{shared}");
    }
    let made: Pod = serde_json::from_value(value).unwrap();
    let spec = made.spec.unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
}

#[test]
fn only_who_looks_at_processes_may_read_others() {
    let value = pod("shadow-doctor-1", &probe(Some("0123")));
    let added = &value["spec"]["containers"][0]["securityContext"]["capabilities"]["add"];
    assert_eq!(added.as_array().unwrap().len(), 5);
    assert_eq!(value["spec"]["containers"][0]["args"][2], "--container=0123");
}

#[test]
fn what_a_probe_prints_is_taken_for_no_more_than_words() {
    for (printed, words) in [
        ("", "it printed no facts"),
        ("exec format error", "it printed no facts, but: exec format error"),
        ("error: unrecognized subcommand 'node-facts'", "unrecognized subcommand"),
        ("{", "its facts are not understood: EOF"),
        (r#"{"format":2}"#, "its facts have format 2, not 1; use the image of this version"),
        (r#"{"format":1,"crio":"yes"}"#, "its facts are not understood"),
    ] {
        let why = parse(printed).unwrap_err();
        assert!(why.as_str().contains(words), "{printed}: {why}");
    }
}

#[test]
fn a_pod_that_will_not_start_says_why() {
    let waiting = |reason: &str| -> Pod {
        let state = json!({ "waiting": { "reason": reason, "message": "not found" } });
        serde_json::from_value(json!({ "status": { "phase": "Pending", "containerStatuses": [
            { "name": "node-facts", "image": "", "imageID": "", "ready": false, "restartCount": 0,
              "state": state },
        ] } }))
        .unwrap()
    };
    assert!(obstacle(&waiting("ContainerCreating")).is_none());
    let why = obstacle(&waiting("ErrImagePull")).unwrap();
    assert_eq!(why, "ErrImagePull: not found; check --probe-image");
}
