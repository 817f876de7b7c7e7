import CThalweg
import ThalwegCore

/// What two tensors of a call share.
enum Shares {
  /// Not a byte; some bytes, in whatever way; they are the same view.
  case nothing, something, everything

  init(_ a: View, _ b: View) {
    if a.data == b.data, a.dtype == b.dtype, a.shape == b.shape, a.strides == b.strides {
      self = .everything
    } else {
      let (x, y) = (a.extent, b.extent)
      self = x.high <= y.low || y.high <= x.low ? .nothing : .something
    }
  }
}

/// The memory of a tensor, where it can be worked on as it lies.
func plain<T: Real>(_ v: View, _: T.Type) -> UnsafeMutablePointer<T>? {
  v.dense && v.dtype == (T.isDouble ? .f64 : .f32) ? v.data.assumingMemoryBound(to: T.self) : nil
}

/// target ← a transform of `v` whose companion is `companion` (or v itself); `bounded`: infinities are refused.
func change(
  _ pair: (ElementKernels?, WholeKernels?), _ h: Hyper, _ target: View, from v: View, _ companion: View, t: Double = 0,
  bounded: Bool = false
) throws(Failure) {
  guard target.count > 0 else { return }
  if target.dtype == .f64 {
    try change(pair, h, target, from: v, companion, t, bounded, Double.self)
  } else {
    try change(pair, h, target, from: v, companion, t, bounded, Float.self)
  }
}
private func change<T: Real>(
  _ pair: (ElementKernels?, WholeKernels?), _ h: Hyper, _ target: View, from v: View, _ companion: View, _ t: Double,
  _ bounded: Bool, _: T.Type
) throws(Failure) {
  let shape = Shape(dimensions: v.shape, role: v.role)
  let source = Shares(target, v), beside = Shares(target, companion)
  if let e = pair.0, source != .something, beside != .something {
    let work = try ElementWork<T>(e, h, shape, t: t)
    if bounded, work.hasInfinity(v, companion) { throw unbounded }
    return work.change(target, from: v, companion)
  }
  // (one that needs finite numbers looks before it writes)
  if let whole = pair.1, source == .everything, beside == .everything, !bounded, !whole.mayFail(h),
    let p = plain(target, T.self)
  {
    return try runOnce(pair, h, p, p, shape, t: t)
  }
  let x = try Dense<T>(v)
  let w = try Dense<T>(companion)
  defer { withExtendedLifetime((x, w)) {} }
  try runOnce(pair, h, x.p, w.p, shape, t: t)
  if bounded, x.hasInfinity { throw unbounded }
  x.write(to: target)
}
private var unbounded: Failure {
  Failure(Status.range, "the set is unbounded in this direction: no point of it is a minimiser")
}

/// An element-wise transform over tensors of any layout: chunk by chunk, in the cache, on all threads, and in place
/// where memory is dense and of the compute type.
struct ElementWork<T: Real> {
  private let kernels: ElementKernels
  /// The prepared rule.
  private let rule: Memory
  private static var chunk: Int { Walker.block }

  init(_ e: ElementKernels, _ h: Hyper, _ shape: Shape, t: Double) throws(Failure) {
    var c = StepContext()
    (c.lr, c.ndim, c.count, c.rows, c.columns) = (t, shape.ndim, shape.count, shape.rows, shape.columns)
    c.isDouble = T.isDouble
    rule = try Memory(aligned(e.size), .current, zeroed: false)
    kernels = e
    e.prepare(h, c, rule.base)
  }

  /// target ← transform of v beside w; the target is one of them or apart from it.
  func change(_ target: View, from v: View, _ w: View) {
    let out = Layout(target), source = Layout(v), beside = Layout(w)
    defer { for l in [out, source, beside] { l.release() } }
    let inPlace = plain(target, T.self), given = plain(w, T.self), same = Shares(target, v) == .everything
    if let inPlace, let given, same {
      return each(target.count, rows: 0) { start, n, _ in run(inPlace + start, given + start, start, n) }
    }
    each(target.count) { start, n, rows in
      let x = inPlace.map { $0 + start } ?? rows
      if inPlace == nil || !same { source.read(start, n, x, scale: 1) }
      let y = given.map { $0 + start } ?? rows + ElementWork.chunk
      if given == nil { beside.read(start, n, y, scale: 1) }
      run(x, y, start, n)
      if inPlace == nil { out.write(start, n, x, rounding: nil) }
    }
  }

  /// Whether the transform of v beside w has an element that is infinite.
  func hasInfinity(_ v: View, _ w: View) -> Bool {
    let source = Layout(v), beside = Layout(w)
    defer { for l in [source, beside] { l.release() } }
    let found = UnsafeMutablePointer<Int64>.allocate(capacity: 1)
    found.initialize(to: 0)
    defer { found.deallocate() }
    each(v.count) { start, n, x in
      source.read(start, n, x, scale: 1)
      beside.read(start, n, x + ElementWork.chunk, scale: 1)
      run(x, x + ElementWork.chunk, start, n)
      for k in 0..<n where x[k].isInfinite { twi_store(found, 1) }
    }
    return found.pointee != 0
  }

  /// g ← g + scale · transform of 0 beside w, which is apart from g.
  func add(_ scale: T, at w: View, to g: View) throws(Failure) {
    let out = Layout(g), beside = Layout(w)
    defer { for l in [out, beside] { l.release() } }
    let inPlace = plain(g, T.self), given = plain(w, T.self)
    // the transform adds to what it finds
    if let inPlace, let given, scale == 1 {
      return each(g.count, rows: 0) { start, n, _ in run(inPlace + start, given + start, start, n) }
    }
    each(g.count) { start, n, x in
      let y = given.map { $0 + start } ?? x + ElementWork.chunk
      if given == nil { beside.read(start, n, y, scale: 1) }
      if let inPlace, scale == 1 { return run(inPlace + start, y, start, n) }
      x.update(repeating: 0, count: n)
      run(x, y, start, n)
      let sum = inPlace.map { $0 + start } ?? x + 2 * ElementWork.chunk
      if inPlace == nil { out.read(start, n, sum, scale: 1) }
      for k in 0..<n { sum[k] += scale * x[k] }
      if inPlace == nil { out.write(start, n, sum, rounding: nil) }
    }
  }

  private func run(_ x: UnsafeMutablePointer<T>, _ y: UnsafeMutablePointer<T>, _ start: Int, _ n: Int) {
    withUnsafeTemporaryAllocation(byteCount: Operands.padBytes, alignment: 64) { pad in
      guard let pad = pad.baseAddress else { return }
      let o = Operands(
        x: UnsafeMutableRawPointer(x), g: UnsafeMutableRawPointer(y), slots: SlotPointers(repeating: rule.base),
        used: 0,
        count: n, index: start, pad: pad)
      if T.isDouble { kernels.map.1(rule.base, Apply(), o) } else { kernels.map.0(rule.base, Apply(), o) }
    }
  }
  /// Calls `body` for chunks of `count` elements, with `rows` rows of room; without any, chunks are as long as a task.
  private func each(
    _ count: Int, rows: Int = 3, _ body: (_ start: Int, _ n: Int, _ rows: UnsafeMutablePointer<T>) -> Void
  ) {
    let task = ElementWork.chunk * Walker.taskBlocks, chunk = rows == 0 ? task : ElementWork.chunk
    Threads.run((count + task - 1) / task, parallel: count >= Walker.parallelFrom) { k in
      withUnsafeTemporaryAllocation(byteCount: max(1, rows * chunk * MemoryLayout<T>.stride), alignment: 64) { room in
        guard let base = room.baseAddress else { return }
        let end = min(count, (k + 1) * task)
        for start in stride(from: k * task, to: end, by: chunk) {
          body(start, min(chunk, end - start), base.bindMemory(to: T.self, capacity: max(1, rows * chunk)))
        }
      }
    }
  }
}
