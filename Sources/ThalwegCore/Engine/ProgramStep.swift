extension Program {
  /// A step over the elements of a chunk.
  struct Step {
    enum Kind { case kernel, measure, copy, read, write, clear, widen, narrow, adopt, notice, mark }
    /// All elements of a chunk, its whole 8-bit blocks, or what is left of them.
    enum Part { case all, blocks, rest }
    var kind: Kind
    var part = Part.all
    var o: Operands
    /// Bit k: pointer k of the operands (x, g, the slots, `ahead`, `out`) advances.
    var moving: UInt32
    /// Its `ahead` is state of a later step, not what it walks through itself.
    var looksAhead = false
    // not optional: an optional closure would be wrapped anew at every call
    var kernel: ElementKernels.Kernel = { _, _, _ in }
    var measure: ElementKernels.Measure = { _, _, _, _, _ in }
    var rule: UnsafeRawPointer
    var apply = Apply()
    var phase = 0
    var layout: UnsafePointer<Layout>?
    var store: UnsafePointer<SlotStore>?
    /// The key of stochastic rounding, of parameters or of narrow state.
    var rounding: UInt64?
  }

  /// Memory that the chunks run through.
  struct Stream {
    var start: UnsafeMutableRawPointer
    /// Bytes of an element.
    var size: Int
  }

  /// v ← direction(v, w) of a stage. Where the last step copies something to v, the kernel reads it from there itself.
  public func map(_ e: ElementKernels, _ stage: Int, _ apply: Apply, _ v: Place, _ w: Place) {
    let copy = steps.last.flatMap { $0.kind == .copy && $0.o.x == v.base && v.base != w.base ? $0 : nil }
    if copy != nil { steps.removeLast() }
    let first = steps.count
    run(e.map, stage, apply, v, w)
    guard let copy, let k = steps.indices.dropFirst(first).first(where: { steps[$0].kind == .kernel }) else { return }
    steps[k].o.x = copy.o.g
    steps[k].moving = steps[k].moving & ~1 | (copy.moving & 2) >> 1
  }

  /// Moves the pointers of the operands whose bits are set; they follow each other in memory.
  @inline(__always)
  func advance(_ o: inout Operands, _ moving: UInt32, _ bytes: Int) {
    withUnsafeMutablePointer(to: &o) { p in
      let pointers = UnsafeMutableRawPointer(p).assumingMemoryBound(to: UnsafeMutableRawPointer.self)
      var moving = moving
      while moving != 0 {
        pointers[moving.trailingZeroBitCount] += bytes
        moving &= moving &- 1
      }
    }
  }
  /// The operands of the rest of a chunk: x, g and what is written lie behind its whole blocks wherever they are;
  /// widened state begins at its row.
  func shifted(_ o: Operands, _ moving: UInt32, _ bytes: Int) -> Operands {
    var o = o
    advance(&o, moving | 3 | Program.outBit, bytes)
    return o
  }
}
