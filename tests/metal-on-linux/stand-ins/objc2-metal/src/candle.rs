//! The few of Candle's own shaders that models use, as Rust functions with the same arguments: they are Candle's to test.

/// The buffers of a dispatch: addresses, and bytes from there to the end of the buffer.
type Buffers<'a> = &'a [(*mut u8, usize)];

/// A function of one of Candle's libraries.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// Index of the buffer that it writes.
    pub output: usize,
    /// Runs it over the whole grid. The buffers must be those that Candle binds for this name.
    pub run: unsafe fn(Buffers),
}

/// The function of this name, if it is known.
pub fn function(name: &str) -> Option<Function> {
    let found = KNOWN.iter().find(|function| function.name == name).copied();
    if found.is_none() {
        eprintln!("the stand-in does not know Candle's function {name}");
    }
    found
}

macro_rules! known {
    ($($name:literal, $output:literal, $run:expr;)*) => {
        const KNOWN: &[Function] = &[$(Function { name: $name, output: $output, run: |b| $run(b) }),*];
    };
}

known! {
    "copy2d_f32", 5, copy2d::<f32>;
    "copy2d_f16", 5, copy2d::<u16>;
    "copy2d_u8", 5, copy2d::<u8>;
    "copy_f32_strided", 5, copy_strided;
    "cast_bf16_f32", 2, |b| cast(b, |v| half::bf16::from_bits(v).to_f32());
    "cast_f16_f32", 2, |b| cast(b, |v| half::f16::from_bits(v).to_f32());
    "affine_f32", 4, affine;
    "cos_f32", 2, |b| unary(b, f32::cos);
    "sin_f32", 2, |b| unary(b, f32::sin);
    "gelu_f32", 2, |b| unary(b, gelu);
    "tanh_f32", 2, |b| unary(b, f32::tanh);
    "badd_f32", 3, |b| binary(b, |x, y| x + y);
    "bmul_f32", 3, |b| binary(b, |x, y| x * y);
    "badd_f32_rstrided", 7, |b| binary_strided(b, |x, y| x + y);
    "bmul_f32_rstrided", 7, |b| binary_strided(b, |x, y| x * y);
    "rmsnorm_f32", 3, rms_norm;
    "rope_f32", 7, rope;
}

/// The value that an argument carries itself.
fn value<T: Copy>(buffers: Buffers, index: usize) -> T {
    let (address, bytes) = buffers[index];
    assert!(bytes >= size_of::<T>(), "argument {index} is too short");
    // SAFETY: so many bytes are there, and Candle binds a `T`.
    unsafe { address.cast::<T>().read_unaligned() }
}

/// The first `count` values of an argument.
fn values<'a, T>(buffers: Buffers<'a>, index: usize, count: usize) -> &'a [T] {
    let (address, bytes) = buffers[index];
    assert!(bytes >= count * size_of::<T>(), "argument {index} is too short");
    // SAFETY: so many values are there, and nothing writes them meanwhile: commands run one by one.
    unsafe { std::slice::from_raw_parts(address.cast(), count) }
}

/// The same, of the argument that is written.
#[allow(clippy::mut_from_ref)]
fn output<'a, T>(buffers: Buffers<'a>, index: usize, count: usize) -> &'a mut [T] {
    let (address, bytes) = buffers[index];
    assert!(bytes >= count * size_of::<T>(), "argument {index} is too short");
    // SAFETY: as above; Candle's outputs are buffers of their own.
    unsafe { std::slice::from_raw_parts_mut(address.cast(), count) }
}

fn copy2d<T: Copy>(b: Buffers) {
    let [rows, cols, from, to] = [0, 1, 2, 3].map(|i| value::<i64>(b, i) as usize);
    let reach = |stride: usize| (rows - 1) * stride + cols;
    let (x, y) = (values::<T>(b, 4, reach(from)), output::<T>(b, 5, reach(to)));
    for row in 0..rows {
        y[row * to..][..cols].copy_from_slice(&x[row * from..][..cols]);
    }
}

/// Where element `i` of a shape lies, by its strides.
fn place(mut i: usize, dims: &[usize], strides: &[usize]) -> usize {
    let mut at = 0;
    for (dim, stride) in dims.iter().zip(strides).rev() {
        at += i % dim * stride;
        i /= dim;
    }
    at
}

fn copy_strided(b: Buffers) {
    let (count, rank) = (value::<usize>(b, 0), value::<usize>(b, 1));
    let (dims, strides) = (values(b, 2, rank), values(b, 3, rank));
    let y = output(b, 5, count);
    let x = values::<f32>(b, 4, place(count - 1, dims, strides) + 1);
    y.iter_mut().enumerate().for_each(|(i, y)| *y = x[place(i, dims, strides)]);
}

fn cast(b: Buffers, read: impl Fn(u16) -> f32) {
    let count = value(b, 0);
    output(b, 2, count).iter_mut().zip(values::<u16>(b, 1, count)).for_each(|(y, x)| *y = read(*x));
}

fn affine(b: Buffers) {
    let (count, mul, add) = (value(b, 0), value::<f32>(b, 1), value::<f32>(b, 2));
    output(b, 4, count).iter_mut().zip(values::<f32>(b, 3, count)).for_each(|(y, x)| *y = x * mul + add);
}

fn unary(b: Buffers, f: impl Fn(f32) -> f32) {
    let count = value(b, 0);
    output(b, 2, count).iter_mut().zip(values::<f32>(b, 1, count)).for_each(|(y, x)| *y = f(*x));
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * x * (1.0 + 0.044715 * x * x)).tanh())
}

fn binary(b: Buffers, f: impl Fn(f32, f32) -> f32) {
    let count = value(b, 0);
    let pairs = values::<f32>(b, 1, count).iter().zip(values::<f32>(b, 2, count));
    output(b, 3, count).iter_mut().zip(pairs).for_each(|(out, (x, y))| *out = f(*x, *y));
}

fn binary_strided(b: Buffers, f: impl Fn(f32, f32) -> f32) {
    let (count, rank) = (value::<usize>(b, 0), value::<usize>(b, 1));
    let (dims, left, right) = (values(b, 2, rank), values(b, 3, rank), values(b, 4, rank));
    let reach = |strides: &[usize]| place(count - 1, dims, strides) + 1;
    let (x, y) = (values::<f32>(b, 5, reach(left)), values::<f32>(b, 6, reach(right)));
    let out = output(b, 7, count).iter_mut().enumerate();
    out.for_each(|(i, out)| *out = f(x[place(i, dims, left)], y[place(i, dims, right)]));
}

fn rms_norm(b: Buffers) {
    let (count, cols, eps) = (value::<usize>(b, 0), value::<usize>(b, 1), value::<f32>(b, 5));
    let (x, factor) = (values::<f32>(b, 2, count), values::<f32>(b, 4, cols));
    for (x, y) in x.chunks(cols).zip(output(b, 3, count).chunks_mut(cols)) {
        let scale = 1.0 / (x.iter().map(|v| v * v).sum::<f32>() / cols as f32 + eps).sqrt();
        y.iter_mut().zip(x).zip(factor).for_each(|((y, x), f)| *y = x * scale * f);
    }
}

fn rope(b: Buffers) {
    let [heads, width, dim, stride] = [0, 1, 2, 3].map(|i| value::<usize>(b, i));
    assert_eq!(stride, 0, "one table for all heads");
    let (x, y) = (values::<f32>(b, 4, heads * width), output(b, 7, heads * width));
    let (cos, sin) = (values::<f32>(b, 5, width / 2), values::<f32>(b, 6, width / 2));
    for (x, y) in x.chunks(width).zip(y.chunks_mut(width)) {
        for i in 0..width / 2 {
            let (position, pair) = (i / (dim / 2), i % (dim / 2));
            let (low, high) = (position * dim + pair, position * dim + pair + dim / 2);
            y[low] = x[low] * cos[i] - x[high] * sin[i];
            y[high] = x[low] * sin[i] + x[high] * cos[i];
        }
    }
}
