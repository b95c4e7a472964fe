//! Turns as they are given: by example, and on random migrations that come and go.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::order::*;

fn limits(at_once: u32, from_node: u32, to_node: u32) -> Limits {
    Limits { at_once, from_node, to_node }
}

fn pod(name: &str) -> Claim {
    Claim::Pod(format!("shop/{name}"))
}

/// One that moves a pod of its own name.
fn entry(name: &str, from: &str, to: &[&str]) -> Entry {
    Entry {
        uid: format!("uid-{name}"),
        name: format!("shop/{name}"),
        round: 1,
        created: 0,
        from: Some(from.to_owned()),
        to: to.iter().map(|node| (*node).to_owned()).collect(),
        claims: BTreeMap::from([(pod(name), true)]),
        running: false,
    }
}

fn goes_on(entry: Entry) -> Entry {
    Entry { running: true, round: 0, ..entry }
}

fn claims(claim: Claim, alone: Alone, mut entry: Entry) -> Entry {
    entry.claims.insert(claim, alone);
    entry
}

/// Each that waits by name, and what becomes of it.
fn dealt(entries: &[Entry], limits: Limits) -> BTreeMap<String, String> {
    let answers = deal(entries, limits);
    let name = |uid: &String| uid.trim_start_matches("uid-").to_owned();
    let text = |answer: Answer| match answer {
        Answer::Go(None) => "go".to_owned(),
        Answer::Go(Some(node)) => format!("go to {node}"),
        Answer::Wait(why) => why,
    };
    answers.into_iter().map(|(uid, answer)| (name(&uid), text(answer))).collect()
}

#[test]
fn who_waits_is_told_for_what() {
    let running = [
        goes_on(entry("a", "w1", &["w2"])),
        goes_on(entry("b", "w1", &["w3"])),
        goes_on(claims(Claim::Queue("orders".into(), "b".into()), true, entry("q", "w4", &["w3"]))),
    ];
    let waiting = [
        entry("c", "w1", &["w4"]),
        entry("d", "w2", &["w3"]),
        entry("e", "w2", &["w3", "w4"]),
        Entry { claims: BTreeMap::from([(pod("a"), true)]), ..entry("f", "w2", &["w4"]) },
        claims(Claim::Queue("orders".into(), "b".into()), true, entry("g", "w2", &["w4"])),
        claims(Claim::Queue("orders".into(), "other".into()), true, entry("h", "w2", &["w1"])),
        entry("i", "w5", &["w6"]),
    ];
    let all = [&running[..], &waiting[..]].concat();
    let found = dealt(&all, limits(5, 2, 2));
    let expected = [
        ("c", "2 migrations from node w1 go on, at most 2 at once: shop/a, shop/b"),
        ("d", "2 migrations to node w3 go on, at most 2 at once: shop/b, shop/q"),
        ("e", "go to w4"),
        ("f", "migration shop/a moves the same pod"),
        ("g", "migration shop/q moves a pod of the same queue orders"),
        ("h", "go to w1"),
        ("i", "5 migrations go on, at most 5 at once"),
    ];
    let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(found, BTreeMap::from(expected));
}

#[test]
fn where_there_is_a_choice_all_nodes_must_be_full() {
    let running = [goes_on(entry("a", "w1", &["w2"])), goes_on(entry("b", "w1", &["w3"]))];
    let all = [&running[..], &[entry("c", "w4", &["w2", "w3"])]].concat();
    let why = "no node that takes the pod has room, at most 1 at once: w2, w3";
    assert_eq!(dealt(&all, limits(9, 9, 1))["c"], why);
}

#[test]
fn the_second_of_two_that_wait_for_the_same_waits_for_the_first() {
    let set = || Claim::StatefulSet("shop/db".into());
    let all = [
        goes_on(entry("x", "w1", &["w2"])),
        claims(set(), true, entry("a", "w1", &["w2"])),
        claims(set(), true, entry("b", "w3", &["w4"])),
    ];
    let found = dealt(&all, limits(9, 1, 1));
    assert_eq!(
        found["b"],
        "migration shop/a comes first and moves a pod of the same StatefulSet shop/db"
    );
}

#[test]
fn pods_of_a_deployment_move_at_once_unless_one_pins_it() {
    let of =
        |name, alone| claims(Claim::Deployment("shop/web".into()), alone, entry(name, name, &[]));
    let go = |all: &[Entry]| dealt(all, limits(9, 9, 9)).values().filter(|it| *it == "go").count();
    assert_eq!(go(&[of("a", false), of("b", false)]), 2);
    assert_eq!(go(&[of("a", false), of("b", true)]), 1);
    assert_eq!(go(&[of("a", true), of("b", false)]), 1);
}

#[test]
fn a_full_node_does_not_hold_up_the_others() {
    let all = [
        goes_on(entry("a", "w1", &["w2"])),
        entry("b", "w1", &["w3"]),
        entry("c", "w3", &["w2"]),
        entry("d", "w4", &["w3"]),
    ];
    let found = dealt(&all, limits(9, 1, 1));
    assert_eq!(found["d"], "go to w3");
    assert_eq!(found.values().filter(|it| it.starts_with("go")).count(), 1);
}

/// Migrations that come, go on and end.
struct Bench {
    limits: Limits,
    rounds: Rounds,
    there: Vec<Entry>,
    count: i64,
    /// How many had ended when each came.
    came: BTreeMap<String, u64>,
    ended: u64,
    longest: u64,
    let_in: Vec<String>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            rounds: Rounds::default(),
            there: Vec::new(),
            count: 0,
            came: BTreeMap::new(),
            ended: 0,
            longest: 0,
            let_in: Vec::new(),
        }
    }

    /// One comes; its name.
    fn come(&mut self, namespace: &str, from: &str, to: &[&str]) -> String {
        self.count += 1;
        let waiting = self.there.iter().filter(|it| !it.running).map(|it| it.round);
        let round = self.rounds.next(namespace, waiting);
        let name = format!("{namespace}/{}", self.count);
        let created = self.count / 3;
        let new = Entry { name: name.clone(), round, created, ..entry(&name, from, to) };
        self.came.insert(new.uid.clone(), self.ended);
        self.there.push(new);
        name
    }

    fn end(&mut self, which: usize) -> Entry {
        self.ended += 1;
        self.there.remove(which)
    }

    fn deal(&mut self) {
        while self.let_in() {}
        self.check();
    }

    /// Whether anybody was.
    fn let_in(&mut self) -> bool {
        let answers = deal(&self.there, self.limits);
        assert_eq!(answers.len(), self.there.iter().filter(|it| !it.running).count());
        let before = self.let_in.len();
        for entry in self.there.iter_mut().filter(|it| !it.running) {
            match &answers[&entry.uid] {
                Answer::Go(to) => {
                    assert!(to.is_some() || entry.to.is_empty());
                    entry.to = to.iter().cloned().collect();
                    entry.running = true;
                    self.let_in.push(entry.name.clone());
                    self.longest = self.longest.max(self.ended - self.came[&entry.uid]);
                }
                Answer::Wait(why) => assert!(!why.is_empty()),
            }
        }
        self.let_in.len() > before
    }

    fn check(&self) {
        let running: Vec<&Entry> = self.there.iter().filter(|it| it.running).collect();
        assert!(running.len() <= self.limits.at_once as usize);
        assert!(!running.is_empty() || self.there.is_empty(), "nobody goes on");
        let (mut from, mut to) = (BTreeMap::new(), BTreeMap::new());
        for entry in &running {
            entry.from.iter().for_each(|node| *from.entry(node).or_default() += 1);
            entry.to.iter().for_each(|node| *to.entry(node).or_default() += 1);
            for (claim, alone) in &entry.claims {
                let same = running
                    .iter()
                    .filter(|it| it.claims.get(claim).is_some_and(|it| *it || *alone));
                assert!(!*alone || same.count() == 1, "{claim:?}");
            }
        }
        assert!(from.values().all(|count: &u32| *count <= self.limits.from_node), "{from:?}");
        assert!(to.values().all(|count: &u32| *count <= self.limits.to_node), "{to:?}");
        // Again, in another order: the same.
        let mut other = self.there.clone();
        other.reverse();
        assert_eq!(deal(&other, self.limits), deal(&self.there, self.limits));
    }
}

const NODES: [&str; 5] = ["w1", "w2", "w3", "w4", "w5"];
const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];

/// Whoever ends is followed by another, so that there is never room for all.
#[test]
fn no_limit_is_passed_and_nobody_starves_in_a_crowd() {
    for seed in 0..40 {
        let mut rng = Rng::with_seed(seed);
        let mut bench = Bench::new(limits(rng.u32(1..7), rng.u32(1..4), rng.u32(1..4)));
        let crowd = rng.usize(5..30);
        for _ in 0..600 {
            while bench.there.len() < crowd {
                let busy = 1 + rng.usize(..4);
                let namespace = NAMESPACES[rng.usize(..busy)];
                let from = rng.usize(..5);
                let to: Vec<&str> = match rng.usize(..4) {
                    0 => NODES.iter().copied().filter(|it| *it != NODES[from]).collect(),
                    _ => vec![NODES[(from + 1 + rng.usize(..4)) % 5]],
                };
                bench.come(namespace, NODES[from], &to);
                let last = bench.there.last_mut().unwrap();
                if rng.usize(..4) == 0 {
                    let claim = Claim::Deployment(format!("d{}", rng.u8(..4)));
                    last.claims.insert(claim, rng.bool());
                }
            }
            bench.deal();
            let running: Vec<usize> =
                (0..bench.there.len()).filter(|at| bench.there[*at].running).collect();
            bench.end(running[rng.usize(..running.len())]);
        }
        assert!(
            bench.longest < 15 * crowd as u64,
            "seed {seed}: {} ended meanwhile",
            bench.longest
        );
    }
}

#[test]
fn namespaces_take_turns_and_the_oldest_of_each_comes_first() {
    let mut bench = Bench::new(limits(1, 9, 9));
    for _ in 0..6 {
        bench.come("a", "w1", &["w2"]);
    }
    for ended in 0..10 {
        bench.deal();
        if ended == 1 {
            for namespace in ["b", "b", "c"] {
                bench.come(namespace, "w1", &["w2"]);
            }
        }
        if let Some(at) = bench.there.iter().position(|it| it.running) {
            bench.end(at);
        }
    }
    assert_eq!(bench.let_in, ["a/1", "a/2", "a/3", "b/7", "c/9", "a/4", "b/8", "a/5", "a/6"]);
}

/// Two nodes of which others never leave both free at the same time.
#[test]
fn who_needs_two_nodes_is_not_starved_by_those_that_need_one() {
    for seed in 0..20 {
        let mut rng = Rng::with_seed(seed);
        let mut bench = Bench::new(limits(9, 1, 1));
        bench.come("a", "w1", &["w3"]);
        bench.come("a", "w4", &["w2"]);
        bench.deal();
        let long = bench.come("a", "w1", &["w2"]);
        for _ in 0..12 {
            bench.come("b", "w1", &["w3"]);
            bench.come("b", "w4", &["w2"]);
            bench.deal();
            if bench.let_in.contains(&long) {
                break;
            }
            let running: Vec<usize> =
                (0..bench.there.len()).filter(|at| bench.there[*at].running).collect();
            bench.end(running[rng.usize(..running.len())]);
        }
        assert!(bench.let_in.contains(&long), "seed {seed}: {:?}", bench.let_in);
    }
}

/// Its namespace is served all the time, only elsewhere.
#[test]
fn who_waits_for_a_busy_node_is_not_starved_by_its_own_namespace() {
    let mut bench = Bench::new(limits(9, 1, 9));
    bench.come("b", "w1", &["w2"]);
    bench.deal();
    let waits = bench.come("a", "w1", &["w2"]);
    for _ in 0..6 {
        bench.come("a", "w3", &["w4"]);
        for namespace in ["b", "c"] {
            bench.come(namespace, "w1", &["w2"]);
        }
        bench.deal();
        while let Some(at) = bench.there.iter().position(|it| it.running) {
            bench.end(at);
        }
    }
    assert!(bench.let_in.iter().position(|it| *it == waits) < Some(4), "{:?}", bench.let_in);
}
