//! Limits of the machine, measured with the means of the kernels: bytes read from memory, and products
//! accumulated in registers.

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, Throughput};
use skald::kernels::Pool;

/// Words of a memory area far larger than the caches (512 MiB).
const WORDS: usize = 1 << 26;
/// Words that a task reads.
const PART: usize = 1 << 18;

/// Memory to read, in huge pages if the system provides them.
pub struct Memory(Vec<u64>);

impl Memory {
    pub fn new() -> Self {
        let mut words = Vec::<u64>::with_capacity(WORDS);
        #[cfg(target_os = "linux")]
        // SAFETY: the range is the vector's own memory, and the advice does not change it.
        unsafe {
            let start = words.as_mut_ptr().addr().next_multiple_of(1 << 21);
            let bytes = (WORDS * size_of::<u64>()) - (1 << 21);
            libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE);
        }
        words.resize(WORDS, 1);
        Self(words)
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }

    /// Reads all of the memory once, on all threads.
    pub fn read(&self, pool: &Pool) {
        pool.run(self.0.len() / PART, |part| {
            let words = &self.0[part * PART..(part + 1) * PART];
            let mut sums = [0u64; 32];
            for chunk in words.as_chunks::<32>().0 {
                for (sum, word) in sums.iter_mut().zip(chunk) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            black_box(sums);
        });
    }

    /// Returns the bytes per second at which all threads together read the memory: the best of five runs.
    #[allow(dead_code, reason = "not every benchmark wants a single figure")]
    pub fn bandwidth(&self, pool: &Pool) -> f64 {
        let each = (0..5).map(|_| {
            let started = Instant::now();
            self.read(pool);
            self.bytes() as f64 / started.elapsed().as_secs_f64()
        });
        each.fold(0.0, f64::max)
    }
}

/// Benchmarks the limits, for comparison with the kernels.
#[allow(dead_code, reason = "not every benchmark is criterion's")]
pub fn measure(criterion: &mut Criterion, pool: &Pool) {
    let mut group = criterion.benchmark_group("limits");
    let memory = Memory::new();
    group.throughput(Throughput::Bytes(memory.bytes() as u64));
    group.bench_function("memory", |b| b.iter(|| memory.read(pool)));
    for (name, operations, run) in compute() {
        let threads = pool.threads();
        group.throughput(Throughput::Elements((operations * threads) as u64));
        group.bench_function(name, |b| b.iter(|| pool.run(threads, |_| run())));
    }
}

/// Steps of a loop that only multiplies and adds.
#[allow(dead_code, reason = "not every benchmark wants it")]
pub const STEPS: usize = 100_000;

/// Returns the compute limits for which this processor has instructions: the name, the operations of one call
/// (a multiplication and an addition are two), and the call for one thread.
#[allow(dead_code, reason = "not every benchmark wants it")]
pub fn compute() -> Vec<(&'static str, usize, fn())> {
    #[cfg(target_arch = "x86_64")]
    if skald::kernels::Isa::detect() == skald::kernels::Isa::Avx512 {
        // SAFETY: the processor has the instructions.
        return vec![
            ("f32", x86::REGISTERS * STEPS * 32, || unsafe {
                x86::f32();
            }),
            ("bf16", x86::REGISTERS * STEPS * 64, || unsafe {
                x86::bf16();
            }),
            ("q8", x86::REGISTERS * STEPS * 128, || unsafe {
                x86::q8();
            }),
        ];
    }
    Vec::new()
}

#[cfg(target_arch = "x86_64")]
#[allow(dead_code, reason = "not every benchmark wants it")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
        _mm512_set1_epi32, _mm512_set1_ps,
    };
    use std::hint::black_box;

    use super::STEPS;

    /// Independent sums, enough that no addition waits for the previous one.
    pub const REGISTERS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub unsafe fn f32() {
        let x = black_box(_mm512_set1_ps(1.0));
        let mut sums = [_mm512_set1_ps(0.0); REGISTERS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn bf16() {
        // SAFETY: the types differ in name only: 512 bits each.
        let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0)) };
        let x = black_box(x);
        let mut sums = [_mm512_set1_ps(0.0); REGISTERS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub unsafe fn q8() {
        let x = black_box(_mm512_set1_epi32(1));
        let mut sums = [_mm512_set1_epi32(0); REGISTERS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }
}
