use shadow_sim::{mutant::MUTANTS, run, run_logged, scenario::Scenario};
fn main() {
    let mut args = std::env::args().skip(1);
    let n: u64 = args.next().unwrap().parse().unwrap();
    let from: u64 = args.next().map_or(0, |a| a.parse().unwrap());
    let begun = std::time::Instant::now();
    let mut bad = 0;
    let mut hist = std::collections::BTreeMap::new();
    for seed in from..from + n {
        let s = Scenario::from_seed(seed);
        let v = run(s.clone(), None);
        if std::env::var("REASON").is_ok_and(|r| v.reason.as_deref() == Some(&r)) {
            println!("{seed} {:?}", s.faults);
        }
        *hist.entry(format!("{:?} {:?}", v.phase, v.reason)).or_insert(0u64) += 1;
        if !v.violations.is_empty() {
            bad += 1;
            if bad <= 8 {
                println!(
                    "seed {seed}: {:?}\n   {:?} {:?} {:?} {:?}",
                    v.violations, s.owner, s.mode, s.habits, s.faults
                );
            }
            if n == 1 {
                for l in run_logged(s, None).log {
                    println!("{l}");
                }
            }
        } else if n == 1 {
            for l in run_logged(s, None).log {
                println!("{l}");
            }
        }
    }
    println!("{n} in {:?}, {bad} bad", begun.elapsed());
    for (k, v) in hist {
        println!("{v:>8} {k}");
    }
    if n > 100 {
        for m in MUTANTS {
            let caught =
                (0..5000).find(|s| !run(Scenario::from_seed(*s), Some(m)).violations.is_empty());
            println!("{m:?}: {caught:?}");
        }
    }
}
