//! Searches among other sequences in too little memory, over a cache that holds the tokens up to each
//! position instead of keys and values: every row must find exactly its own context in its blocks.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::beam::tests::{ranked, row, run};
use super::super::blocks::{BLOCK_SIZE, BlockCopy, BlockMove};
use super::super::scheduler::{Chunk, StepLimits};
use super::*;
use crate::request::{BeamParams, EarlyStopping, Limits, RequestDraft, RequestId, SamplingStyle};

const WINDOW: usize = 256;
const SALT: u64 = 5;

/// A request and when it arrives.
#[derive(Debug, Clone)]
struct Arrival {
    step: usize,
    prompt: Vec<u32>,
    max_tokens: usize,
    beams: Option<BeamParams>,
    reads_prompt: bool,
}

impl Arrival {
    fn request(&self) -> GenerateRequest {
        let limits = Limits::for_model(WINDOW, 12, vec![3]);
        let id = RequestId::random();
        let mut draft = RequestDraft::new(
            id,
            self.prompt.clone(),
            self.max_tokens,
            SamplingStyle::Greedy,
        );
        draft.beams = self.beams;
        draft.logprobs.prompt = self.reads_prompt;
        limits.admit(draft).unwrap()
    }

    fn blocks(&self) -> usize {
        let prompt = self.prompt.len();
        blocks_needed(&self.request(), prompt, prompt + self.max_tokens)
    }

    /// What a search with nothing beside it finds.
    fn expected(&self) -> Vec<Hypothesis> {
        let stop = self.request().stop.clone();
        let search = BeamSearch::new(self.beams.unwrap(), stop, self.max_tokens, 0);
        run(search, |tokens| row(SALT, &[&self.prompt, tokens].concat()))
    }
}

/// Stands for these tokens.
fn prefix(tokens: &[u32]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(tokens, &mut hasher);
    std::hash::Hasher::finish(&hasher)
}

/// The worker, without a model.
struct Machine {
    scheduler: Scheduler,
    max_step_tokens: usize,
    /// A hash of the context up to each position.
    memory: Vec<[u64; BLOCK_SIZE]>,
    searches: HashMap<SequenceId, Box<Beams>>,
    left: HashMap<SequenceId, usize>,
    found: HashMap<SequenceId, Vec<Hypothesis>>,
}

impl Machine {
    fn new(max_batch: usize, max_step_tokens: usize, blocks: usize) -> Self {
        let limits = StepLimits {
            max_batch,
            speculative_rows: 8,
        };
        Self {
            scheduler: Scheduler::new(limits, blocks),
            max_step_tokens,
            memory: vec![[0; BLOCK_SIZE]; blocks],
            searches: HashMap::new(),
            left: HashMap::new(),
            found: HashMap::new(),
        }
    }

    fn add(&mut self, id: SequenceId, arrival: &Arrival) {
        let mut sequence = Sequence::new(id, arrival.prompt.clone(), WINDOW, !arrival.reads_prompt);
        match Beams::new(&arrival.request(), &mut sequence, arrival.max_tokens) {
            Some(beams) => drop(self.searches.insert(id, beams)),
            None => drop(self.left.insert(id, arrival.max_tokens)),
        }
        self.scheduler.add(sequence);
    }

    fn step(&mut self) -> Vec<Chunk> {
        let plan = self.scheduler.plan(self.max_step_tokens, true, |_| true);
        for change in self.scheduler.take_moves() {
            if let BlockMove::Copy(BlockCopy { from, to }) = change {
                self.memory[to.0 as usize] = self.memory[from.0 as usize];
            }
        }
        for chunk in &plan {
            let sequence = self.scheduler.sequence(chunk.id).unwrap();
            let end = chunk.first_position + chunk.tokens - chunk.drafted;
            for at in chunk.first_position..end {
                let block = sequence.table[at / BLOCK_SIZE].0 as usize;
                self.memory[block][at % BLOCK_SIZE] = prefix(&sequence.context()[..=at]);
            }
        }
        for chunk in &plan {
            self.scheduler.computed(chunk);
        }
        for chunk in plan.iter().filter(|chunk| chunk.completes) {
            let Some(sequence) = self.scheduler.sequence(chunk.id) else {
                continue;
            };
            let context = sequence.context().to_vec();
            let blocks = sequence
                .table
                .iter()
                .map(|block| self.memory[block.0 as usize]);
            let held: Vec<u64> = blocks.flatten().take(context.len()).collect();
            let expected = (1..=context.len()).map(|end| prefix(&context[..end]));
            assert_eq!(held, expected.collect::<Vec<_>>());
            self.draw(chunk.id, chunk.request, &context);
            self.scheduler.check();
        }
        plan
    }

    fn draw(&mut self, id: SequenceId, request: SequenceId, context: &[u32]) {
        let row = row(SALT, context);
        let Some(beams) = self.searches.get_mut(&request) else {
            self.scheduler.push_tokens(id, &[ranked(&row, 1)[0].id]);
            let left = self.left.get_mut(&id).unwrap();
            *left -= 1;
            if *left == 0 {
                self.scheduler.remove_request(id);
            }
            return;
        };
        match beams.take(id, ranked(&row, beams.wanted()), &mut self.scheduler) {
            SearchStep::Next => (),
            SearchStep::Done(hypotheses) => {
                self.found.insert(request, hypotheses);
                self.scheduler.remove_request(request);
            }
        }
    }
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let beams = (1usize..=4, 0usize..3, -0.5..2.0).prop_map(|(width, at, length_penalty)| {
        let early = [
            EarlyStopping::Always,
            EarlyStopping::Heuristic,
            EarlyStopping::Never,
        ];
        BeamParams {
            width,
            returned: width,
            length_penalty,
            early_stopping: early[at],
        }
    });
    // Few different tokens, so that prefixes are often shared.
    let prompt = prop::collection::vec(0u32..2, 1..50);
    (
        0usize..30,
        prompt,
        1usize..40,
        prop::option::weighted(0.6, beams),
        any::<bool>(),
    )
        .prop_map(|(step, prompt, max_tokens, beams, reads_prompt)| Arrival {
            step,
            prompt,
            max_tokens,
            beams,
            reads_prompt,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_search_finds_the_same_whatever_runs_beside_it_and_however_little_memory_there_is(
        arrivals in prop::collection::vec(arrival(), 1..6),
        spare in 0usize..12,
        max_batch in 4usize..9,
        max_step_tokens in 4usize..60,
    ) {
        let blocks = arrivals.iter().map(Arrival::blocks).max().unwrap() + spare;
        let mut machine = Machine::new(max_batch, max_step_tokens, blocks);
        for step in 0..20_000 {
            for (n, arrival) in arrivals.iter().enumerate().filter(|(_, a)| a.step == step) {
                machine.add(SequenceId(100 * n as u64), arrival);
            }
            machine.step();
            let at_work = machine.scheduler.running() + machine.scheduler.waiting();
            if step > 30 && at_work == 0 {
                break;
            }
        }
        prop_assert_eq!(machine.scheduler.running() + machine.scheduler.waiting(), 0);
        prop_assert_eq!(machine.scheduler.blocks().available(), blocks);
        for (n, arrival) in arrivals.iter().enumerate().filter(|(_, a)| a.beams.is_some()) {
            let found = &machine.found[&SequenceId(100 * n as u64)];
            prop_assert_eq!(found, &arrival.expected());
        }
    }

    #[test]
    fn a_search_that_is_taken_out_leaves_nothing(arrival in arrival(), steps in 0usize..40) {
        let mut machine = Machine::new(8, 20, arrival.blocks() + 3);
        machine.add(SequenceId(7), &arrival);
        for _ in 0..steps {
            machine.step();
        }
        machine.scheduler.remove_request(SequenceId(7));
        machine.scheduler.check();
        let scheduler = &machine.scheduler;
        prop_assert_eq!(scheduler.running() + scheduler.waiting(), 0);
        prop_assert_eq!(scheduler.blocks().available(), arrival.blocks() + 3);
    }
}

/// The rows of a search cost what as many plain sequences cost: one token each.
#[test]
fn beams_that_branch_off_compute_one_token_in_a_step() {
    let beams = BeamParams {
        width: 4,
        returned: 4,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Never,
    };
    let arrival = Arrival {
        step: 0,
        prompt: vec![1; 21],
        max_tokens: 30,
        beams: Some(beams),
        reads_prompt: false,
    };
    // A beam is branched off before others are removed.
    let mut machine = Machine::new(4, 100, arrival.blocks() + 4);
    machine.add(SequenceId(0), &arrival);
    machine.step();
    while machine.found.is_empty() {
        let plan = machine.step();
        let rows: Vec<_> = plan
            .iter()
            .map(|chunk| (chunk.tokens, chunk.completes))
            .collect();
        assert_eq!(rows, [(1, true); 4]);
    }
}
