//! The scheduler and its blocks over long random histories.
//!
//! A memory stands beside the accounts in which every slot says after which exact tokens of which
//! tenant's context its keys and values were computed. Copies, writes and blocks that leave and come
//! back are carried out in it as the worker does. So a sequence that reads a position that is not
//! its own is found out, however it came to it.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::engine::beams::{Beams, SearchStep, blocks_needed, sequence_ids, slots_needed};
use crate::engine::blocks::windows::{SlotId, window_blocks};
use crate::engine::blocks::{BlockCopy, BlockId, Place, PrefixId};
use crate::engine::event::TokenLogprob;
use crate::kernels::kv::KvPart;
use crate::request::{
    BeamParams, EarlyStopping, Limits, RequestDraft, RequestId, SamplingStyle, Tenant,
};

/// Tokens that searches choose from.
const VOCABULARY: usize = 16;
/// Not a number of whole blocks, so that a context that slides leaves a part of one.
pub(crate) const WINDOW: usize = 72;
pub(crate) const TENANTS: usize = 3;

/// A share and a priority.
fn whose(n: usize) -> (Tenant, i32) {
    let priority = [0, 0, 0, -1, 1][n % 5];
    (Tenant::of_key(&[b'a' + (n % TENANTS) as u8]), priority)
}

/// Stands for the tokens from the start of a tenant's context up to a position.
type Name = usize;

/// What was never written.
const NOTHING: Name = usize::MAX;

type Slots = [Name; BLOCK_SIZE];

/// Gives every beginning of a context a name of its own.
#[derive(Default)]
struct Names {
    next: HashMap<(Name, u32), Name>,
    /// The names of what the pool calls by a hash.
    prefixes: HashMap<PrefixId, Name>,
}

impl Names {
    fn then(&mut self, name: Name, token: u32) -> Name {
        let free = TENANTS + self.next.len();
        *self.next.entry((name, token)).or_insert(free)
    }

    /// The name at each position of a context.
    fn of(&mut self, root: PrefixId, tokens: &[u32]) -> Vec<Name> {
        let roots = self.prefixes.len();
        let (mut name, mut prefix) = (*self.prefixes.entry(root).or_insert(roots), root);
        let mut names = Vec::new();
        for chunk in tokens.chunks(BLOCK_SIZE) {
            for &token in chunk {
                name = self.then(name, token);
                names.push(name);
            }
            if let Ok(block) = chunk.try_into() {
                prefix = prefix.then(block);
                let known = *self.prefixes.entry(prefix).or_insert(name);
                assert_eq!(known, name, "two prefixes have one id");
            }
        }
        names
    }
}

/// The size of a pool, and of the window that the model slides over some layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pool {
    pub blocks: usize,
    /// Positions of the window, and the number of its slots: at least those of one window.
    pub windows: Option<(usize, usize)>,
}

impl Pool {
    /// Returns a pool with `spare` slots more than one sequence needs.
    pub fn with_window(blocks: usize, window: usize, spare: usize) -> Self {
        let slots = window_blocks(window) + spare;
        Self {
            blocks,
            windows: Some((window, slots)),
        }
    }
}

/// The worker, without a model.
struct Machine {
    scheduler: Scheduler,
    max_step_tokens: usize,
    pool: Pool,
    /// What blocks hold in the global layers.
    memory: Vec<Slots>,
    /// What slots hold in the window layers.
    windows: Vec<Slots>,
    /// Parts of blocks that left.
    kept: HashMap<(KvPart, PrefixId), Slots>,
    names: Names,
    roots: Vec<PrefixId>,
    next: u64,
    alive: Vec<SequenceId>,
    searches: HashMap<SequenceId, Box<Beams>>,
    /// Whose, and which tokens: all that was ever a context.
    texts: Vec<(PrefixId, Vec<u32>)>,
}

impl Machine {
    fn new(limits: StepLimits, max_step_tokens: usize, pool: Pool, share: bool) -> Self {
        let tenants = [
            Tenant::ANONYMOUS,
            Tenant::of_key(b"a"),
            Tenant::of_key(b"b"),
        ];
        let tenants = tenants.map(|tenant| if share { Tenant::ANONYMOUS } else { tenant });
        let roots = tenants.map(PrefixId::root).to_vec();
        let mut names = Names::default();
        for &root in &roots {
            names.of(root, &[]);
        }
        let mut scheduler = Scheduler::new(limits, pool.blocks);
        if let Some((window, slots)) = pool.windows {
            scheduler = scheduler.with_windows(window, slots);
        }
        let slots = pool.windows.map_or(0, |windows| windows.1);
        Self {
            scheduler,
            max_step_tokens,
            pool,
            memory: vec![[NOTHING; BLOCK_SIZE]; pool.blocks],
            windows: vec![[NOTHING; BLOCK_SIZE]; slots],
            kept: HashMap::new(),
            names,
            roots,
            next: 0,
            alive: Vec::new(),
            searches: HashMap::new(),
            texts: Vec::new(),
        }
    }

    fn add(
        &mut self,
        root: PrefixId,
        tokens: Vec<u32>,
        may_reuse: bool,
        keep: bool,
        (share, priority): (Tenant, i32),
    ) {
        let id = SequenceId(self.next);
        self.next += 1;
        self.alive.push(id);
        let sequence = Sequence::new(id, tokens, WINDOW, may_reuse);
        let sequence = sequence.with_root(root).with_keep(keep);
        let sequence = sequence.with_share(share, priority);
        self.texts.push((root, sequence.context().to_vec()));
        self.scheduler.add(sequence);
    }

    /// Adds a sequence that begins as another one and goes on otherwise.
    fn fork(&mut self, nth: usize, cut: usize, tokens: &[u32], keep: bool) {
        let Some((root, text)) = self.text(nth) else {
            return;
        };
        let beginning = &text[..cut % (text.len() + 1)];
        let tokens = [beginning, tokens].concat();
        if !tokens.is_empty() {
            self.add(root, tokens, true, keep, whose(nth));
        }
    }

    /// Adds a sequence whose pass over a text is observed from a position on.
    fn inspect(&mut self, nth: usize, from: usize) {
        let Some((root, text)) = self.text(nth) else {
            return;
        };
        let id = SequenceId(self.next);
        self.next += 1;
        let from = from % text.len();
        let (share, priority) = whose(nth);
        let sequence = Sequence::new(id, text, WINDOW, true).with_root(root);
        let sequence = sequence.with_observed_from(Some(from));
        self.alive.push(id);
        self.scheduler.add(sequence.with_share(share, priority));
    }

    /// Adds a beam search that goes on from a text, if it can ever run.
    fn search(&mut self, nth: usize, width: usize, max_tokens: usize) {
        let Some((root, mut text)) = self.text(nth) else {
            return;
        };
        text.truncate(WINDOW - max_tokens);
        let id = RequestId::new("search");
        let mut draft = RequestDraft::new(id, text.clone(), max_tokens, SamplingStyle::Greedy);
        draft.beams = Some(BeamParams {
            width,
            returned: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Never,
        });
        let limits = Limits::for_model(WINDOW, VOCABULARY, Vec::new());
        let Ok(request) = limits.admit(draft) else {
            return;
        };
        let longest = text.len() + max_tokens;
        let fits = blocks_needed(&request, text.len(), longest) <= self.memory.len()
            && self.pool.windows.is_none_or(|(window, slots)| {
                slots_needed(&request, text.len(), longest, window) <= slots
            });
        if !fits || width > self.scheduler.limits.max_batch {
            return;
        }
        let id = SequenceId(self.next);
        self.next += sequence_ids(&request);
        let mut sequence = Sequence::new(id, text, WINDOW, true).with_root(root);
        if let Some(beams) = Beams::new(&request, &mut sequence, max_tokens) {
            self.searches.insert(id, beams);
            self.alive.push(id);
            self.scheduler.add(sequence);
        }
    }

    /// Hands a search the most likely tokens after one of its beams: any, but the same for the same
    /// beam.
    fn advance(&mut self, chunk: &Chunk) {
        let Some(sequence) = self.scheduler.sequence(chunk.id) else {
            return;
        };
        let seed = sequence.tokens().iter().fold(7, |hash: u32, &token| {
            hash.wrapping_mul(31).wrapping_add(token)
        });
        let Some(beams) = self.searches.get_mut(&chunk.request) else {
            return;
        };
        let row = (0..beams.wanted() as u32).map(|rank| TokenLogprob {
            id: (seed + rank) % VOCABULARY as u32,
            logprob: -(1.0 + rank as f32 + (seed % 8) as f32),
        });
        if let SearchStep::Done(_) = beams.take(chunk.id, row.collect(), &mut self.scheduler) {
            self.remove(chunk.request);
        }
    }

    fn text(&self, nth: usize) -> Option<(PrefixId, Vec<u32>)> {
        let at = nth.checked_rem(self.texts.len())?;
        self.texts.get(at).cloned()
    }

    fn remove(&mut self, id: SequenceId) {
        if let Some(sequence) = self.scheduler.sequence(id) {
            self.texts
                .push((sequence.root, sequence.context().to_vec()));
        }
        self.scheduler.remove_request(id);
        self.searches.remove(&id);
        self.alive.retain(|&alive| alive != id);
    }

    /// A step as the worker does it. `right` of the guesses are so, then comes `token`.
    fn step(
        &mut self,
        may_inspect: bool,
        ready: impl Fn(SequenceId) -> bool,
        right: usize,
        token: u32,
    ) -> Vec<Chunk> {
        let plan = self
            .scheduler
            .plan(self.max_step_tokens, may_inspect, ready);
        let observed: Vec<_> = plan.iter().filter(|chunk| chunk.observed).collect();
        assert!(observed.len() <= 1);
        assert!(
            observed
                .iter()
                .all(|c| c.tokens <= BLOCK_SIZE && c.drafted == 0)
        );
        self.check_observed(&plan, may_inspect);
        self.carry_out_moves();
        self.check_contents();
        for chunk in &plan {
            self.write(chunk);
        }
        for chunk in &plan {
            self.check_reads(chunk);
        }
        for chunk in &plan {
            self.scheduler.computed(chunk);
        }
        for chunk in plan.iter().filter(|chunk| chunk.completes) {
            if self.searches.contains_key(&chunk.request) {
                self.advance(chunk);
                continue;
            }
            if chunk.observed {
                self.remove(chunk.request);
                continue;
            }
            let right = chunk.drafted.min(right);
            let draft = &self.scheduler.sequence_of(chunk).unwrap().draft;
            let sampled = [&draft[..right], &[token]].concat();
            self.scheduler.push_sampled(chunk, &sampled);
        }
        plan
    }

    /// A chunk is observed as a whole or not at all, from the position on that was asked for.
    fn check_observed(&self, plan: &[Chunk], may_inspect: bool) {
        for chunk in plan {
            let sequence = self.scheduler.sequence_of(chunk).expect("it runs");
            let Some(from) = sequence.observed_from else {
                assert!(!chunk.observed);
                continue;
            };
            assert!(may_inspect);
            let end = chunk.first_position + chunk.tokens;
            assert!(if chunk.observed {
                chunk.first_position >= from
            } else {
                end <= from
            });
        }
    }

    fn carry_out_moves(&mut self) {
        for change in self.scheduler.take_moves() {
            match change {
                BlockMove::Copy(BlockCopy { from, to }) => {
                    self.memory[to.0 as usize] = self.memory[from.0 as usize];
                }
                BlockMove::CopySlot { from, to } => {
                    self.windows[to.0 as usize] = self.windows[from.0 as usize];
                }
                BlockMove::Evict(Eviction { place, prefix }) => {
                    let slots = *self.at(place);
                    assert_eq!(slots[BLOCK_SIZE - 1], self.names.prefixes[&prefix]);
                    self.kept.insert((place.part(), prefix), slots);
                }
            }
        }
    }

    /// Returns the memory of a part of a block.
    fn at(&mut self, place: Place) -> &mut Slots {
        match place {
            Place::Block(block) => &mut self.memory[block.0 as usize],
            Place::Slot(slot) => &mut self.windows[slot.0 as usize],
        }
    }

    /// Writes a part's keys and values. Its blocks are held by it alone and not known.
    fn write(&mut self, chunk: &Chunk) {
        let s = &self.scheduler;
        let sequence = s.sequence(chunk.id).expect("a planned sequence runs");
        let known: HashSet<BlockId> = s.blocks.contents().map(|content| content.0).collect();
        let end = chunk.first_position + chunk.tokens;
        assert_eq!(sequence.draft.len(), chunk.drafted);
        assert!(sequence.table.len() * BLOCK_SIZE >= end);
        let text = [&sequence.context()[..end - chunk.drafted], &sequence.draft].concat();
        let names = self.names.of(sequence.root, &text);
        let slots = window_table(s, sequence);
        for (position, name) in (0..).zip(names).skip(chunk.first_position) {
            if let Some(slots) = &slots {
                let n = position / BLOCK_SIZE;
                assert!(n >= sequence.first_slot);
                self.windows[slots[n] as usize][position % BLOCK_SIZE] = name;
            }
            let block: BlockId = sequence.table[position / BLOCK_SIZE];
            let holders = s.running.iter().filter(|o| o.table.contains(&block));
            assert_eq!(holders.count(), 1, "{block:?} is shared");
            assert!(!known.contains(&block), "{block:?} is known");
            self.memory[block.0 as usize][position % BLOCK_SIZE] = name;
        }
    }

    /// All that a part's rows read, whoever wrote it, is their own context.
    fn check_reads(&mut self, chunk: &Chunk) {
        let sequence = self.scheduler.sequence(chunk.id).expect("it runs");
        let end = chunk.first_position + chunk.tokens - chunk.drafted;
        let names = self.names.of(sequence.root, &sequence.context()[..end]);
        let window = self.pool.windows.map_or(0, |windows| windows.0);
        let visible = (chunk.first_position + 1).saturating_sub(window);
        let slots = window_table(&self.scheduler, sequence);
        for (position, name) in names.into_iter().enumerate() {
            let n = position / BLOCK_SIZE;
            let block = sequence.table[n];
            assert_eq!(self.memory[block.0 as usize][position % BLOCK_SIZE], name);
            if let Some(slots) = &slots
                && position >= visible
            {
                assert_eq!(self.windows[slots[n] as usize][position % BLOCK_SIZE], name);
            }
        }
    }

    /// Every running sequence's blocks, and all that is known, hold what the accounts say; and no
    /// block is two tenants'.
    fn check_contents(&mut self) {
        let mut owners = HashMap::new();
        for sequence in &self.scheduler.running {
            let computed = &sequence.context()[..sequence.computed];
            let slots = window_table(&self.scheduler, sequence);
            for (position, name) in (0..).zip(self.names.of(sequence.root, computed)) {
                let n = position / BLOCK_SIZE;
                let block: BlockId = sequence.table[n];
                assert_eq!(self.memory[block.0 as usize][position % BLOCK_SIZE], name);
                if let Some(slots) = &slots
                    && n >= sequence.first_slot
                {
                    assert_eq!(self.windows[slots[n] as usize][position % BLOCK_SIZE], name);
                }
            }
            for &block in &sequence.table {
                assert_eq!(*owners.entry(block).or_insert(sequence.root), sequence.root);
            }
        }
        for (block, parent, tokens) in self.scheduler.blocks.contents() {
            let slot = self.scheduler.blocks.windows().and_then(|w| w.of(block));
            let mut name = self.names.prefixes[&parent];
            for (n, &token) in tokens.iter().enumerate() {
                name = self.names.then(name, token);
                let held = self.memory[block.0 as usize][n];
                assert_eq!(held, name, "{block:?} is not what it is known as");
                if let Some(SlotId(slot)) = slot {
                    let held = self.windows[slot as usize][n];
                    assert_eq!(
                        held, name,
                        "the slot of {block:?} is not what it is known as"
                    );
                }
            }
        }
        self.scheduler.check();
    }

    /// Brings back the parts of a text's blocks that left and are not there; `fails`: the writing of one of
    /// them fails.
    fn import(&mut self, nth: usize, fails: Option<usize>) {
        let Some((root, text)) = self.text(nth) else {
            return;
        };
        let names = self.names.of(root, &text);
        let known = self.scheduler.blocks.find_prefix(root, &text);
        let windows = self.scheduler.blocks.windows();
        let lacks_slot = |n: usize| {
            let block = known.get(n);
            windows.is_some_and(|w| block.is_none_or(|block| w.of(block.0).is_none()))
        };
        // From the first block that lacks a part on, if that is before the end of what is known.
        let first = (0..known.len()).find(|&n| lacks_slot(n));
        let first = first.unwrap_or(known.len());
        let mut prefix = root;
        let mut came = Vec::new();
        for (n, tokens) in text.as_chunks().0.iter().enumerate() {
            prefix = prefix.then(tokens);
            if n < first {
                continue;
            }
            let kept = |part| self.kept.get(&(part, prefix)).copied();
            let global = kept(KvPart::Global).filter(|_| n >= known.len());
            if global.is_none() && n >= known.len() {
                break;
            }
            let window = kept(KvPart::Window).filter(|_| lacks_slot(n));
            came.push((global, window));
        }
        let known = known.len();
        self.carry_out_moves();
        let parts = came.iter().map(|(global, window)| StoredParts {
            global: global.is_some(),
            window: window.is_some(),
        });
        let parts: Vec<StoredParts> = parts.collect();
        let import = self.scheduler.begin_import(root, &text, first, &parts);
        self.carry_out_moves();
        let writes: Vec<_> = import.to_write().collect();
        let written = writes.len().min(fails.unwrap_or(usize::MAX));
        for &(place, n) in &writes[..written] {
            let (global, window) = came[n];
            let slots = match place {
                Place::Block(_) => global,
                Place::Slot(_) => window,
            };
            let slots = slots.expect("only what came is written");
            assert_eq!(slots, names[(first + n) * BLOCK_SIZE..][..BLOCK_SIZE]);
            *self.at(place) = slots;
        }
        let taken = self.scheduler.end_import(import, written);
        let after = self.scheduler.blocks.find_prefix(root, &text).len();
        assert_eq!(after, known.max(first + taken));
        self.check_contents();
    }
}

/// Returns the slots of a sequence's blocks, as the worker hands them to the kernels.
fn window_table(scheduler: &Scheduler, sequence: &Sequence) -> Option<Vec<u32>> {
    scheduler.blocks.windows()?;
    let table = scheduler
        .blocks
        .window_table(&sequence.table, sequence.first_slot);
    assert_eq!(table.len(), sequence.table.len());
    Some(table)
}

impl Scheduler {
    /// Checks every invariant of the accounts.
    pub(in crate::engine) fn check(&self) {
        self.blocks
            .check(self.running.iter().map(|s| s.table.as_slice()));
        let tables = self.running.iter();
        self.blocks
            .check_windows(tables.map(|s| (s.table.as_slice(), s.first_slot)));
        for sequence in &self.running {
            if let Some(windows) = self.blocks.windows() {
                let first = sequence.slots_from(windows.window(), sequence.computed);
                assert_eq!(sequence.first_slot, first);
            }
            assert!(sequence.computed < sequence.context().len() || sequence.pending() == 0);
            assert!(sequence.table.len() * BLOCK_SIZE >= sequence.computed);
            assert_eq!(sequence.prefixes.len(), sequence.computed / BLOCK_SIZE);
        }
        for sequence in self.waiting.iter().chain(&self.stalled) {
            assert!(sequence.table.is_empty() && sequence.computed == 0);
        }
    }
}

/// What happens to a scheduler. A number of a thing that is not there does nothing.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Add {
        tenant: usize,
        tokens: Vec<u32>,
        may_reuse: bool,
        keep: bool,
    },
    Fork {
        nth: usize,
        cut: usize,
        tokens: Vec<u32>,
        keep: bool,
    },
    Step {
        token: u32,
        stalled: u64,
    },
    Remove {
        nth: usize,
    },
    Import {
        nth: usize,
        fails: Option<usize>,
    },
    /// A step fails, and with it all requests in it.
    Abort,
    Search {
        nth: usize,
        /// 1 to 4.
        width: usize,
        /// 1 to 40.
        max_tokens: usize,
    },
    Budget {
        /// At least 1.
        tokens: usize,
    },
    Inspect {
        nth: usize,
        from: usize,
    },
}

impl Machine {
    fn act(&mut self, action: Action) {
        match action {
            Action::Add {
                tenant,
                tokens,
                may_reuse,
                keep,
            } => {
                self.add(self.roots[tenant], tokens, may_reuse, keep, whose(tenant));
            }
            Action::Fork {
                nth,
                cut,
                tokens,
                keep,
            } => self.fork(nth, cut, &tokens, keep),
            Action::Step { token, stalled } => {
                let may_inspect = stalled % 2 == 0;
                let ready = |id: SequenceId| id.0 % 8 != stalled;
                self.step(may_inspect, ready, token as usize % 3, token);
            }
            Action::Remove { nth } => {
                if let Some(&id) = self.alive.get(nth) {
                    self.remove(id);
                }
            }
            Action::Import { nth, fails } => self.import(nth, fails),
            Action::Abort => {
                // The moves of a plan are made even if its pass fails.
                let plan = self.scheduler.plan(self.max_step_tokens, true, |_| true);
                self.carry_out_moves();
                for chunk in plan {
                    self.remove(chunk.request);
                }
            }
            Action::Search {
                nth,
                width,
                max_tokens,
            } => self.search(nth, width, max_tokens),
            Action::Budget { tokens } => self.max_step_tokens = tokens,
            Action::Inspect { nth, from } => self.inspect(nth, from),
        }
        self.scheduler.check();
    }
}

/// Runs a history, and then what is left of it to its end.
///
/// # Panics
/// If a block is leaked, released twice, written while shared or known, or read by what it does not
/// belong to; or if something that waits does not get its turn when nothing more arrives.
pub(crate) fn run(
    limits: StepLimits,
    max_step_tokens: usize,
    pool: Pool,
    share: bool,
    actions: impl IntoIterator<Item = Action>,
) {
    let mut machine = Machine::new(limits, max_step_tokens, pool, share);
    for action in actions {
        machine.act(action);
    }
    for _ in 0..4000 {
        if machine.alive.is_empty() {
            break;
        }
        for chunk in machine.step(true, |_| true, 1, 0) {
            let is_search = machine.searches.contains_key(&chunk.request);
            if chunk.completes && !is_search {
                machine.remove(chunk.request);
            }
        }
    }
    assert!(machine.alive.is_empty(), "starved: {:?}", machine.alive);
    let scheduler = &machine.scheduler;
    assert_eq!(scheduler.running() + scheduler.waiting(), 0);
    assert_eq!(scheduler.stalled(), 0);
    assert_eq!(scheduler.blocks().available(), pool.blocks);
    let slots = scheduler
        .blocks()
        .windows()
        .map(|w| (w.window(), w.available()));
    assert_eq!(slots, pool.windows);
}

#[cfg(test)]
mod random {
    use proptest::prelude::*;

    use super::*;

    fn action() -> impl Strategy<Value = Action> {
        // Few different tokens, so that prefixes are often shared.
        let tokens = |longest| prop::collection::vec(0u32..2, 1..longest);
        let nth = 0usize..1000;
        let add = (0..TENANTS, tokens(WINDOW * 2), any::<bool>(), any::<bool>());
        let fork = (
            nth.clone(),
            nth.clone(),
            prop::collection::vec(0u32..2, 0..20),
            any::<bool>(),
        );
        let import = (nth.clone(), prop::option::weighted(0.2, 0usize..3));
        prop_oneof![
            1 => add.prop_map(|(tenant, tokens, may_reuse, keep)| Action::Add {
                tenant, tokens, may_reuse, keep
            }),
            2 => fork.prop_map(|(nth, cut, tokens, keep)| Action::Fork { nth, cut, tokens, keep }),
            8 => (0u32..2, 0u64..8).prop_map(|(token, stalled)| Action::Step { token, stalled }),
            1 => (0usize..8).prop_map(|nth| Action::Remove { nth }),
            1 => import.prop_map(|(nth, fails)| Action::Import { nth, fails }),
            1 => Just(Action::Abort),
            1 => (nth.clone(), 1usize..=4, 1usize..=40).prop_map(|(nth, width, max_tokens)| Action::Search {
                nth, width, max_tokens
            }),
            1 => (1usize..50).prop_map(|tokens| Action::Budget { tokens }),
            1 => (nth.clone(), nth.clone()).prop_map(|(nth, from)| Action::Inspect { nth, from }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn accounts_and_contents_are_right_over_any_history(
            actions in prop::collection::vec(action(), 1..200),
            blocks in WINDOW.div_ceil(BLOCK_SIZE)..20,
            max_step_tokens in 1usize..50,
            speculative_rows in 0usize..7,
            share in prop::bool::weighted(0.3),
        ) {
            let limits = StepLimits { max_batch: 4, speculative_rows };
            run(limits, max_step_tokens, Pool { blocks, windows: None }, share, actions);
        }

        #[test]
        fn sliding_layers_read_their_own_positions_too(
            actions in prop::collection::vec(action(), 1..200),
            blocks in WINDOW.div_ceil(BLOCK_SIZE)..20,
            window in 1usize..WINDOW,
            spare in 0usize..10,
            max_step_tokens in 1usize..50,
            speculative_rows in 0usize..7,
            share in prop::bool::weighted(0.3),
        ) {
            let limits = StepLimits { max_batch: 4, speculative_rows };
            let pool = Pool::with_window(blocks, window, spare);
            run(limits, max_step_tokens, pool, share, actions);
        }
    }
}
