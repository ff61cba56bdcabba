//! How the scheduler shares batch, budget and blocks between tenants.

use std::collections::HashMap;

use proptest::prelude::*;

use super::share::QUANTUM;
use super::*;
use crate::request::Tenant;

const WINDOW: usize = 128;

/// A request: tokens of its prompt, and those to generate.
type Shape = (usize, usize);

fn tenant(n: usize) -> Tenant {
    Tenant::of_key(&[n as u8])
}

/// The worker, without a model: requests end after their tokens.
struct Machine {
    scheduler: Scheduler,
    max_step_tokens: usize,
    next: u64,
    /// Tokens still to be sampled.
    left: HashMap<SequenceId, usize>,
    whose: HashMap<SequenceId, usize>,
    /// Where each sequence's service ends so far.
    reached: HashMap<SequenceId, usize>,
    /// Tokens computed for each tenant, each once.
    service: Vec<usize>,
    finished: Vec<u64>,
}

impl Machine {
    fn new(tenants: usize, max_batch: usize, max_step_tokens: usize, blocks: usize) -> Self {
        let limits = StepLimits {
            max_batch,
            speculative_rows: 0,
        };
        Self {
            scheduler: Scheduler::new(limits, blocks),
            max_step_tokens,
            next: 0,
            left: HashMap::new(),
            whose: HashMap::new(),
            reached: HashMap::new(),
            service: vec![0; tenants],
            finished: Vec::new(),
        }
    }

    fn add(&mut self, whose: usize, priority: i32, (prompt, answer): Shape) -> u64 {
        let id = SequenceId(self.next);
        self.next += 1;
        // No two have a beginning in common.
        let tokens = (0..prompt as u32).map(|n| n + 1000 * self.next as u32);
        let sequence = Sequence::new(id, tokens.collect(), WINDOW, true);
        let sequence = sequence.with_share(tenant(whose), priority);
        self.scheduler.add(sequence);
        self.left.insert(id, answer);
        self.whose.insert(id, whose);
        id.0
    }

    /// Runs a step; returns the tokens that each sequence got.
    fn step(&mut self) -> Vec<(u64, usize)> {
        let plan = self.scheduler.plan(self.max_step_tokens, true, |_| true);
        for chunk in &plan {
            let end = chunk.first_position + chunk.tokens;
            let start = self.scheduler.sequence(chunk.id).expect("it runs").start;
            let reached = self.reached.entry(chunk.id).or_default();
            let new = (start + end).saturating_sub(*reached);
            *reached = (*reached).max(start + end);
            self.service[self.whose[&chunk.id]] += new;
        }
        for chunk in &plan {
            self.scheduler.computed(chunk);
            if chunk.completes {
                self.scheduler.push_sampled(chunk, &[7]);
                let left = self.left.get_mut(&chunk.id).expect("it is known");
                *left -= 1;
                if *left == 0 {
                    self.scheduler.remove(chunk.id);
                    self.left.remove(&chunk.id);
                    self.finished.push(chunk.id.0);
                }
            }
        }
        self.scheduler.check();
        plan.iter()
            .map(|chunk| (chunk.id.0, chunk.tokens))
            .collect()
    }

    /// Running sequences of a tenant.
    fn running(&self, whose: usize) -> usize {
        let its = |s: &&Sequence| s.share == tenant(whose);
        self.scheduler.running.iter().filter(its).count()
    }
}

const ENDLESS: usize = usize::MAX;

#[test]
fn two_requests_do_not_wait_for_the_five_hundred_of_another_tenant() {
    let mut machine = Machine::new(2, 4, 64, 100);
    for _ in 0..500 {
        machine.add(0, 0, (10, 40));
    }
    for _ in 0..10 {
        machine.step();
    }
    assert_eq!(machine.running(0), 4);
    let few = [machine.add(1, 0, (10, 40)), machine.add(1, 0, (10, 40))];
    let mut steps = 0;
    while !few.iter().all(|id| machine.finished.contains(id)) {
        machine.step();
        steps += 1;
    }
    // Alone they would take 41.
    assert!(steps <= 60, "{steps}");
    assert!(machine.finished.len() <= 10, "{:?}", machine.finished);
    assert!(machine.scheduler.yields() >= 2);
}

#[test]
fn endless_streams_of_one_tenant_give_up_half_of_the_places() {
    let mut machine = Machine::new(2, 8, 64, 1000);
    for _ in 0..20 {
        machine.add(0, 0, (4, ENDLESS));
    }
    for _ in 0..30 {
        machine.step();
    }
    for _ in 0..20 {
        machine.add(1, 0, (4, ENDLESS));
    }
    for _ in 0..20 {
        machine.step();
    }
    assert_eq!([machine.running(0), machine.running(1)], [4, 4]);
    // And that is how it stays.
    let yields = machine.scheduler.yields();
    for _ in 0..500 {
        machine.step();
    }
    assert_eq!([machine.running(0), machine.running(1)], [4, 4]);
    assert_eq!(machine.scheduler.yields(), yields);
}

#[test]
fn tenants_take_turns_at_a_single_place() {
    let mut machine = Machine::new(3, 1, 64, 100);
    for whose in 0..3 {
        machine.add(whose, 0, (4, ENDLESS));
    }
    for _ in 0..6000 {
        machine.step();
    }
    let (least, most) = (machine.service.iter().min(), machine.service.iter().max());
    let difference = most.unwrap() - least.unwrap();
    assert!(difference as u64 <= QUANTUM + 64, "{:?}", machine.service);
    // Context that slid on is read again, so it is more than a token a step.
    assert!(machine.scheduler.yields() <= 9000 / QUANTUM as usize);
}

#[test]
fn a_preempted_sequence_is_the_next_of_its_tenant() {
    let mut machine = Machine::new(2, 2, 64, 100);
    for _ in 0..4 {
        machine.add(0, 0, (4, 30));
    }
    machine.step();
    let other = machine.add(1, 0, (4, 5));
    while !machine.finished.contains(&other) {
        machine.step();
    }
    assert_eq!(machine.scheduler.yields(), 1);
    machine.step();
    let running = machine.scheduler.running.iter().map(|s| s.id.0);
    assert_eq!(running.collect::<Vec<_>>(), [0, 1]);
    while machine.finished.len() < 5 {
        machine.step();
    }
    assert_eq!(machine.finished, [4, 0, 1, 2, 3]);
}

#[test]
fn the_prompts_of_one_tenant_do_not_hold_back_those_of_another() {
    let mut machine = Machine::new(2, 8, 32, 1000);
    for _ in 0..8 {
        machine.add(0, 0, (120, 2));
    }
    machine.step();
    let short = machine.add(1, 0, (16, 2));
    let steps: Vec<_> = (0..3).map(|_| machine.step()).collect();
    let read = steps.iter().flatten().find(|chunk| chunk.0 == short);
    assert_eq!(read, Some(&(short, 16)), "{steps:?}");
}

#[test]
fn a_short_prompt_does_not_wait_for_long_ones_of_its_tenant() {
    let mut machine = Machine::new(1, 16, 32, 1000);
    let long: Vec<u64> = (0..4).map(|_| machine.add(0, 0, (120, 2))).collect();
    machine.step();
    // In order of arrival each longer one starts with a block.
    assert_eq!(machine.running(0), 2);
    let short = machine.add(0, 0, (10, 2));
    let mut steps = 0;
    while !machine.finished.contains(&short) {
        machine.step();
        steps += 1;
    }
    // One for each long one that is admitted before it, one to read it, and one to decode.
    assert!(steps <= 5, "{steps}");
    while machine.finished.len() < 5 {
        machine.step();
    }
    assert_eq!(machine.finished[0], short);
    assert_eq!(machine.finished[1..], long);
}

#[test]
fn the_oldest_prompt_gets_half_of_each_step_however_many_short_ones_arrive() {
    let mut machine = Machine::new(1, 16, 32, 1000);
    let long = machine.add(0, 0, (120, 1));
    let mut steps = 0;
    while !machine.finished.contains(&long) {
        for _ in 0..4 {
            machine.add(0, 0, (12, 1));
        }
        machine.step();
        steps += 1;
    }
    assert_eq!(steps, 120usize.div_ceil(16));
    assert!(machine.finished.len() > steps, "{:?}", machine.finished);
}

#[test]
fn prompts_side_by_side_do_not_take_each_others_blocks() {
    // Eight blocks each.
    let mut machine = Machine::new(1, 16, 32, 20);
    for _ in 0..6 {
        machine.add(0, 0, (120, 2));
    }
    for _ in 0..4 {
        machine.step();
    }
    assert_eq!(machine.running(0), 2);
    while machine.finished.len() < 6 {
        machine.step();
    }
    assert_eq!(machine.scheduler.preemptions(), 0);
}

#[test]
fn a_lower_priority_value_begins_earlier_and_fairness_is_within_one() {
    let mut machine = Machine::new(2, 1, 64, 100);
    for _ in 0..3 {
        machine.add(0, 0, (4, 2));
    }
    let later = machine.add(1, 5, (4, 2));
    let urgent = [machine.add(1, -5, (4, 20)), machine.add(1, -5, (4, 2))];
    while machine.finished.len() < 6 {
        machine.step();
    }
    assert_eq!(machine.finished[..2], urgent);
    assert_eq!(machine.finished[2..], [0, 1, 2, later]);
}

#[test]
fn the_tenant_with_the_most_service_gives_way_when_blocks_run_out() {
    // Each takes two blocks in the end, and there are five.
    let mut machine = Machine::new(2, 4, 64, 5);
    machine.add(0, 0, (4, 28));
    machine.add(0, 0, (4, 28));
    for _ in 0..8 {
        machine.step();
    }
    machine.add(1, 0, (4, 28));
    while machine.scheduler.preemptions() == 0 {
        machine.step();
    }
    // The youngest is of the other tenant, and stays.
    assert_eq!([machine.running(0), machine.running(1)], [1, 1]);
    while machine.finished.len() < 3 {
        machine.step();
    }
}

#[test]
fn a_tenant_that_was_idle_has_nothing_saved_up() {
    let mut machine = Machine::new(2, 4, 64, 100);
    for _ in 0..100 {
        machine.add(0, 0, (4, 40));
    }
    for _ in 0..200 {
        machine.step();
    }
    for _ in 0..100 {
        machine.add(1, 0, (4, 40));
    }
    machine.service.fill(0);
    for _ in 0..200 {
        machine.step();
    }
    let difference = machine.service[0].abs_diff(machine.service[1]) as u64;
    assert!(difference <= QUANTUM + 64, "{:?}", machine.service);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Tenants that always have something waiting get the same number of tokens, whatever their requests
    /// look like: the difference is bounded by the quantum and what steps can compute.
    #[test]
    fn tenants_with_work_get_the_same_service(
        shapes in prop::collection::vec(
            prop::collection::vec((1usize..60, 1usize..68), 1..4), 2..9,
        ),
        max_batch in 1usize..8,
        max_step_tokens in 16usize..80,
        blocks in WINDOW / BLOCK_SIZE..60,
    ) {
        let tenants = shapes.len();
        let mut machine = Machine::new(tenants, max_batch, max_step_tokens, blocks);
        let mut added = vec![0; tenants];
        for _ in 0..1500 {
            for (whose, shapes) in shapes.iter().enumerate() {
                let waiting = machine.scheduler.waiting.iter();
                let waiting = waiting.filter(|s| s.share == tenant(whose)).count();
                // More than one step can take, so that there is always one left.
                for _ in waiting..=max_batch {
                    machine.add(whose, 0, shapes[added[whose] % shapes.len()]);
                    added[whose] += 1;
                }
            }
            machine.step();
            let (least, most) = (machine.service.iter().min(), machine.service.iter().max());
            let difference = most.unwrap() - least.unwrap();
            let bound = QUANTUM as usize + 2 * (max_step_tokens + max_batch);
            prop_assert!(difference <= bound, "{:?} {bound}", machine.service);
        }
    }
}
