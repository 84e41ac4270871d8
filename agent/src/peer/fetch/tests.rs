//! Conversations of a fetch with members that behave in all kinds of ways.

use super::*;
use crate::peer::standing::{Reason, UNREACHABLE};

const OWN: u8 = 9;
const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn id(number: u8) -> MemberId {
    MemberId::from_bytes([number; 16])
}

/// A fetch, its clock, and the standing of the other members.
struct Talk {
    fetch: Fetch,
    standing: Standing,
    now: Moment,
}

impl Talk {
    fn new(ranking: &[u8]) -> Self {
        Self::at_hop(ranking, 0)
    }

    /// All members have proved themselves.
    fn at_hop(ranking: &[u8], hop: u8) -> Self {
        let ranking: Vec<MemberId> = ranking.iter().map(|number| id(*number)).collect();
        let fetch = Fetch::new(id(OWN), &ranking, hop, 1);
        let mut standing = Standing::default();
        (0..=u8::MAX).for_each(|number| standing.proved(id(number)));
        Self { fetch, standing, now: S }
    }

    fn start(&mut self) -> String {
        let action = self.fetch.start(self.now, &mut self.standing);
        words(&action)
    }

    fn on(&mut self, event: Event) -> String {
        self.try_on(event).expect("something to do")
    }

    fn try_on(&mut self, event: Event) -> Option<String> {
        let action = self.fetch.on(event, self.now, &mut self.standing)?;
        Some(words(&action))
    }

    /// Lets time pass, tick by tick, until there is something to do. Returns how long that took.
    fn wait(&mut self, most: Duration) -> (Duration, String) {
        let begin = self.now;
        while self.now - begin < most {
            self.now += TICK;
            if let Some(done) = self.try_on(Event::Tick) {
                return (self.now - begin, done);
            }
        }
        panic!("nothing happened within {most:?}");
    }

    /// Spends the budget for giving up slow transfers.
    fn without_budget(mut self) -> Self {
        while self.standing.may_hedge() {}
        self
    }
}

/// An action in a few words: mode, member, and the offset where there is one.
fn words(action: &Action) -> String {
    let at = |offset: &u64| if *offset == 0 { String::new() } else { format!(" from {offset}") };
    match action {
        Action::Ask(ask) => {
            let mode = format!("{:?}", ask.mode).to_lowercase();
            format!("{mode} {}{}", ask.member.as_bytes()[0], at(&ask.offset))
        }
        Action::Registry { offset } => format!("registry{}", at(offset)),
        Action::Pause(_) => "pause".to_owned(),
        Action::GiveUp => "give up".to_owned(),
    }
}

fn others(numbers: &[u8]) -> Event {
    Event::Redirect(numbers.iter().map(|number| id(*number)).collect())
}

#[test]
fn the_owner_probes_the_next_ranks_and_reads_from_the_registry() {
    let mut talk = Talk::new(&[OWN, 1, 2, 3, 4]);
    assert_eq!(talk.start(), "cached 1");
    assert_eq!(talk.on(Event::Missing), "cached 2");
    assert_eq!(talk.on(Event::Missing), "cached 3");
    assert_eq!(talk.on(Event::Missing), "registry");
    assert_eq!(talk.on(Event::RegistryFailed), "give up");
}

#[test]
fn who_does_not_own_goes_to_the_registry_when_three_owners_and_three_probes_failed() {
    let mut talk = Talk::new(&[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(talk.start(), "owner 1");
    for expected in ["owner 2", "owner 3", "cached 4", "cached 5", "cached 6", "registry"] {
        assert_eq!(talk.on(Event::Missing), expected);
    }
    let mut alone = Talk::new(&[OWN]);
    assert_eq!(alone.start(), "registry");
    assert_eq!(Talk::new(&[]).start(), "registry", "nobody is there, not even oneself");
}

#[test]
fn regression_in_place_of_the_dead_come_the_next_in_rank() {
    let mut talk = Talk::new(&[1, 2, 3, 4, 5, 6, OWN, 7, 8, 10, 11]);
    talk.standing.unreachable(id(1), talk.now);
    assert_eq!(talk.start(), "owner 2");
    for (event, expected) in [
        (Event::Unreachable, "owner 3"),
        (Event::Missing, "owner 4"),
        (Event::Foreign, "owner 5"),
        (Event::Missing, "owner 6"),
        (Event::Missing, "cached 7"),
        (Event::NoAnswer, "cached 8"),
        (Event::Missing, "cached 10"),
        (Event::Missing, "cached 11"),
        (Event::Missing, "registry"),
    ] {
        assert_eq!(talk.on(event), expected);
    }
}

#[test]
fn a_second_in_rank_waits_for_the_first_only() {
    let mut talk = Talk::new(&[1, OWN, 3, 4, 5]);
    assert_eq!(talk.start(), "owner 1");
    assert_eq!(talk.on(Event::Unreachable), "cached 3");
    assert!(talk.standing.shuns(&id(1), talk.now + UNREACHABLE - MS));
}

#[test]
fn a_request_that_was_passed_on_often_enough_is_not_passed_on_again() {
    let mut talk = Talk::at_hop(&[1, 2, 3, OWN, 4], HOPS);
    assert_eq!(talk.start(), "cached 1");
    for expected in ["cached 2", "cached 3", "registry"] {
        assert_eq!(talk.on(Event::Missing), expected);
    }
}

#[test]
fn a_redirect_is_followed_and_a_failing_holder_leads_back_to_the_owner() {
    let mut talk = Talk::new(&[1, 2, 3]);
    talk.start();
    assert_eq!(talk.on(others(&[7])), "holder 7");
    talk.fetch.on(Event::Answered { arriving: true }, talk.now, &mut talk.standing);
    talk.try_on(Event::Bytes(1000));
    let action = talk.fetch.on(Event::Broken, talk.now, &mut talk.standing).unwrap();
    let Action::Ask(ask) = action else { panic!("{action:?}") };
    assert_eq!((ask.member, ask.mode, ask.offset), (id(1), Mode::Owner, 1000));
    assert_eq!(ask.tried, [id(7)], "it is not to be named again");
    assert_eq!(talk.on(others(&[7, OWN])), "pause", "nobody new is named");
}

#[test]
fn a_redirect_by_a_probed_member_leads_back_to_a_probe() {
    let mut talk = Talk::new(&[OWN, 1, 2]);
    talk.start();
    assert_eq!(talk.on(others(&[7])), "holder 7");
    assert_eq!(talk.on(Event::Missing), "cached 1");
}

#[test]
fn regression_the_registry_is_left_alone_while_everybody_who_has_a_piece_is_busy() {
    let mut talk = Talk::new(&[1, 2]);
    talk.start();
    for _ in 0..ROUNDS {
        for number in 10..10 + REDIRECTS {
            assert_eq!(talk.on(others(&[number])), format!("holder {number}"));
        }
        assert_eq!(talk.on(others(&[99])), "pause");
        talk.now += 2 * CROWDED;
        assert_eq!(talk.on(Event::Tick), "owner 1", "those who were busy may be named again");
    }
    for number in 10..10 + REDIRECTS {
        talk.on(others(&[number]));
    }
    assert_eq!(talk.on(others(&[99])), "owner 1", "it has an end: back from the holder");
    for expected in ["owner 2", "registry"] {
        assert_eq!(talk.on(Event::Missing), expected);
    }
}

#[test]
fn a_busy_owner_is_asked_again_and_a_busy_holder_is_not() {
    let mut talk = Talk::new(&[1, 2]);
    talk.start();
    assert_eq!(talk.on(Event::Busy(100 * MS)), "pause");
    talk.now += 120 * MS;
    assert_eq!(talk.on(Event::Tick), "owner 1");
    talk.on(others(&[7]));
    assert_eq!(talk.on(Event::Busy(100 * MS)), "owner 1");
}

#[test]
fn an_answer_without_bytes_is_not_asked_for_in_a_busy_loop() {
    let mut talk = Talk::new(&[1, 2]);
    talk.start();
    assert_eq!(talk.on(Event::Waiting), "pause");
    talk.now += LEAST_PAUSE + 16 * MS;
    assert_eq!(talk.on(Event::Tick), "owner 1");
    talk.now += 300 * MS;
    assert_eq!(talk.on(Event::Waiting), "owner 1", "it had waited before it answered");
}

#[test]
fn an_owner_that_makes_one_wait_is_left_after_three_seconds_within_the_budget() {
    let wait = |mut talk: Talk| {
        talk.start();
        let begin = talk.now;
        loop {
            talk.now += 300 * MS;
            let asked = talk.on(Event::Waiting);
            if asked != "owner 1" {
                return (talk.now - begin, asked, talk.standing.shuns(&id(1), talk.now));
            }
        }
    };
    let (waited, asked, shunned) = wait(Talk::new(&[1, 2]));
    assert!(waited >= WAIT && waited < WAIT + S, "{waited:?}");
    assert_eq!((asked.as_str(), shunned), ("owner 2", false));
    let (waited, asked, shunned) = wait(Talk::new(&[1, 2]).without_budget());
    assert!(waited >= LONGEST_WAIT && waited < LONGEST_WAIT + S, "{waited:?}");
    assert_eq!((asked.as_str(), shunned), ("owner 2", true), "it delivered nothing to anybody");
}

#[test]
fn a_silent_sender_is_left_and_its_bytes_are_kept() {
    let mut talk = Talk::new(&[1, 2]).without_budget();
    talk.start();
    talk.try_on(Event::Answered { arriving: true });
    talk.try_on(Event::Bytes(500));
    let (waited, asked) = talk.wait(60 * S);
    assert!(waited <= LONGEST_WAIT + TICK, "{waited:?}");
    assert_eq!(asked, "owner 2 from 500");
}

#[test]
fn a_slow_sender_of_what_it_has_whole_costs_budget_and_a_trickle_does_not() {
    let send = |arriving, bytes_per_tick, talk: Talk| {
        let mut talk = talk;
        talk.start();
        talk.try_on(Event::Answered { arriving });
        for tick in 1..200 {
            talk.now += TICK;
            talk.try_on(Event::Bytes(bytes_per_tick));
            if talk.try_on(Event::Tick).is_some() {
                return Some(TICK * tick);
            }
        }
        None
    };
    let new = || Talk::new(&[1, 2]);
    assert_eq!(send(false, SLOW / 5, new()), Some(SLOW_OVER));
    assert_eq!(send(false, SLOW / 5, new().without_budget()), None);
    assert_eq!(send(false, SLOW / 3, new()), None);
    assert_eq!(send(true, SLOW / 5, new()), None, "it is as fast as the registry");
    assert_eq!(send(false, 1, new().without_budget()), Some(SLOW_OVER));
    assert_eq!(send(true, 1, new().without_budget()), Some(LONGEST_WAIT));
}

#[test]
fn one_late_answer_of_a_member_that_delivers_is_no_reason_to_shun_it() {
    let mut talk = Talk::new(&[1, 2]);
    talk.start();
    talk.now += 500 * MS;
    talk.standing.delivered(id(1), talk.now - 100 * MS);
    assert_eq!(talk.on(Event::NoAnswer), "owner 1");
    talk.now += 500 * MS;
    assert_eq!(talk.on(Event::NoAnswer), "owner 2");
    assert!(talk.standing.shuns(&id(1), talk.now));
}

#[test]
fn only_who_sent_all_of_a_wrong_piece_is_a_liar() {
    let mut talk = Talk::new(&[1, 2]);
    talk.start();
    talk.try_on(Event::Bytes(10));
    assert_eq!(talk.on(Event::Wrong("it is wrong".into())), "owner 2");
    let reason = talk.standing.shunned(talk.now).remove(0).reason;
    assert_eq!(reason, Reason::Lied("it is wrong".into()));

    let mut talk = Talk::new(&[1, 2]);
    talk.start();
    talk.on(others(&[7]));
    talk.try_on(Event::Bytes(10));
    assert_eq!(talk.on(Event::Missing), "owner 1 from 10");
    talk.try_on(Event::Bytes(10));
    assert_eq!(talk.on(Event::Wrong("it is wrong".into())), "owner 1", "all from one now");
    assert!(talk.standing.shunned(talk.now).is_empty());
    talk.try_on(Event::Bytes(20));
    assert_eq!(talk.on(Event::Wrong("it is wrong".into())), "owner 2");
    assert!(talk.standing.shuns(&id(1), talk.now));
}

#[test]
fn a_registry_that_lies_is_asked_again_and_given_up() {
    let mut talk = Talk::new(&[OWN]);
    talk.start();
    for _ in 1..WRONG {
        talk.try_on(Event::Bytes(10));
        assert_eq!(talk.on(Event::Wrong(String::new())), "registry");
    }
    assert_eq!(talk.on(Event::Wrong(String::new())), "give up");
}

#[test]
fn another_cluster_is_not_asked_again() {
    let mut talk = Talk::new(&[1, 2]);
    talk.start();
    assert_eq!(talk.on(Event::Foreign), "owner 2");
    assert_eq!(talk.standing.shunned(talk.now)[0].reason, Reason::Foreign);
}

#[test]
fn shunned_members_are_passed_over() {
    let mut talk = Talk::new(&[1, 2, 3]);
    talk.standing.unreachable(id(1), talk.now);
    assert_eq!(talk.start(), "owner 2");
    talk.standing.unreachable(id(7), talk.now);
    assert_eq!(talk.on(others(&[7])), "pause", "nobody who can be asked is named");
}

#[test]
fn who_is_cut_off_asks_the_owner_again_and_convicts_nobody() {
    let mut talk = Talk::new(&[1, 2]);
    talk.start();
    talk.try_on(Event::Bytes(10));
    assert_eq!(talk.on(Event::Broken), "pause");
    talk.now += S;
    assert_eq!(talk.on(Event::Tick), "owner 1 from 10");
    talk.try_on(Event::Bytes(10));
    assert_eq!(talk.on(Event::Wrong(String::new())), "owner 1");
    assert!(talk.standing.shunned(talk.now).is_empty());
    for _ in 1..CUTS {
        talk.now += S;
        talk.on(Event::Broken);
    }
    assert_eq!(talk.on(Event::Broken), "owner 2");
}

#[test]
fn bytes_of_one_who_has_proved_nothing_are_dropped_when_it_stops() {
    let stop = |proved: bool| {
        let mut talk = Talk::new(&[1, 2]);
        talk.standing = Standing::default();
        if proved {
            talk.standing.proved(id(1));
        }
        talk.start();
        talk.try_on(Event::Bytes(500));
        talk.on(Event::Missing)
    };
    assert_eq!(stop(false), "owner 2");
    assert_eq!(stop(true), "owner 2 from 500");

    let mut talk = Talk::new(&[1, 2]);
    talk.standing = Standing::default();
    talk.start();
    talk.try_on(Event::Bytes(500));
    talk.fetch.finished(&mut talk.standing);
    assert!(talk.standing.is_proven(&id(1)));
}
