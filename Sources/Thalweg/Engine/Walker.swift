import CThalweg

/// One state buffer of one tensor, as stored.
struct SlotStore {
  enum Format: UInt8 { case direct, bf16, signed8, positive8 }
  var base: UnsafeMutableRawPointer
  var format: Format

  static func bytes(_ format: Format, _ count: Int, _ compute: Int) -> Int {
    switch format {
    case .direct: count * compute
    case .bf16: count * 2
    case .signed8, .positive8: EightBit.bytes(count)
    }
  }
}

/// One bound tensor: plain data, so that a step touches no reference counts.
struct Record {
  var x: Layout
  var g: Layout
  var shadow: Layout?
  var count: Int
  /// Bytes of an element of the compute type.
  var size: Int
  var branch: Int
  var group: Int
  /// Steps of this tensor.
  var t = 0
  var active = false
  var bound = false
  var absent = false
  var isDouble: Bool
  var firstBlock = 0
  var blocks = 0
  /// The state, stage after stage; `firstSlot[stage]` says where a stage's begins.
  var slots: UnsafeMutablePointer<SlotStore>
  var slotCount: Int
  var firstSlot: UnsafeMutablePointer<Int32>
  /// For each stage of the pipeline: its prepared rule, and its scalars.
  var rules: UnsafeMutablePointer<UnsafeMutableRawPointer>
  var ownRules: UnsafeMutablePointer<UnsafeMutableRawPointer>
  var scalars: UnsafeMutablePointer<UnsafeMutablePointer<Double>>
  var apply = Apply()
  /// Whole-tensor scratch in the compute type, where the branch needs it.
  var scratch: UnsafeMutableRawPointer?
  /// The parameters that the update moves, where they are not the host's: master weights, stored tensors of views.
  var master: UnsafeMutableRawPointer?
  /// The host does not see the master rounded, but a view of it.
  var viewed = false
  var rounding: UInt64?

  @inline(__always) func slot(_ stage: Int, _ k: Int) -> SlotStore { slots[Int(firstSlot[stage]) + k] }
  /// Parameters, gradient and the state of a stage lie densely in the compute type: no block needs a copy.
  func isDirect(_ stage: Int) -> Bool {
    let native = isDouble ? DType.f64 : .f32
    guard g.dense, g.dtype == native, master == nil, x.dense, x.dtype == native, shadow == nil else { return false }
    for k in 0..<used(stage) where slot(stage, k).format != .direct { return false }
    return true
  }
  @inline(__always) func used(_ stage: Int) -> Int { Int(firstSlot[stage + 1] - firstSlot[stage]) }
}

/// Cuts tensors into blocks and runs passes over them.
enum Walker {
  /// Elements of a block: what one thread computes before it touches the next; also the grain of reductions.
  package static let block = 4096
  /// Blocks of a task of a large tensor.
  static let taskBlocks = 16
  /// Below this many elements a step stays on the calling thread.
  static let parallelFrom = 32_768

  /// Buffers of one thread: gradient, update, parameter, the widened slots of one stage, and room for padded tails.
  static let scratchRows = 4 + SlotPointers.capacity
  /// One row more: the gradient as a source left it.
  static let scratchBytes = (scratchRows + 1) * block * 8

  @inline(__always) static func pad(_ scratch: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer { row(scratch, scratchRows - 1) }

  @inline(__always) static func row(_ scratch: UnsafeMutableRawPointer, _ k: Int) -> UnsafeMutableRawPointer { scratch + k * (block * 8) }

  /// The state of a stage for one block, widened where it is stored in fewer bits.
  @inline(__always)
  static func openSlots(_ r: UnsafeMutablePointer<Record>, _ stage: Int, _ offset: Int, _ count: Int, _ scratch: UnsafeMutableRawPointer) -> (SlotPointers, Int) {
    let used = r.pointee.used(stage)
    var p = SlotPointers(repeating: scratch)
    let base = r.pointee.slots + Int(r.pointee.firstSlot[stage])
    for k in 0..<min(used, SlotPointers.capacity) {
      let s = base[k]
      if s.format == .direct {
        p[k] = s.base + offset &* r.pointee.size
      } else {
        let out = row(scratch, 3 + k)
        let f = out.assumingMemoryBound(to: Float.self)
        switch s.format {
        case .bf16:
          let q = s.base.assumingMemoryBound(to: UInt16.self) + offset
          for i in 0..<count { f[i] = floatFromBF16(q[i]) }
        case .signed8: EightBit.decode(s.base, r.pointee.count, offset, count, f, signed: true)
        default: EightBit.decode(s.base, r.pointee.count, offset, count, f, signed: false)
        }
        p[k] = out
      }
    }
    return (p, min(used, SlotPointers.capacity))
  }

  @inline(__always)
  static func closeSlots(_ r: UnsafeMutablePointer<Record>, _ stage: Int, _ offset: Int, _ count: Int, _ scratch: UnsafeMutableRawPointer) {
    let base = r.pointee.slots + Int(r.pointee.firstSlot[stage])
    for k in 0..<min(r.pointee.used(stage), SlotPointers.capacity) {
      let s = base[k]
      guard s.format != .direct else { continue }
      let f = UnsafePointer(row(scratch, 3 + k).assumingMemoryBound(to: Float.self))
      switch s.format {
      case .bf16:
        let q = s.base.assumingMemoryBound(to: UInt16.self) + offset
        for i in 0..<count { q[i] = bf16FromFloat(f[i]) }
      case .signed8: EightBit.encode(s.base, r.pointee.count, offset, count, f, signed: true)
      default: EightBit.encode(s.base, r.pointee.count, offset, count, f, signed: false)
      }
    }
  }

  /// The gradient of a block in the compute type: the host's own memory where it may be read directly, else a copy times `scale`.
  @inline(__always)
  static func openGradient(_ r: UnsafeMutablePointer<Record>, _ offset: Int, _ count: Int, _ buffer: UnsafeMutableRawPointer, copy: Bool, scale: inout Double) -> UnsafeMutableRawPointer {
    let native = r.pointee.isDouble ? DType.f64 : .f32
    if !copy, r.pointee.g.dense, r.pointee.g.dtype == native { return r.pointee.g.data + offset &* r.pointee.size }
    if r.pointee.isDouble {
      r.pointee.g.read(offset, count, buffer.assumingMemoryBound(to: Double.self), scale: scale)
    } else {
      r.pointee.g.read(offset, count, buffer.assumingMemoryBound(to: Float.self), scale: Float(scale))
    }
    scale = 1
    return buffer
  }

  @inline(__always)
  static func openParameters(_ r: UnsafeMutablePointer<Record>, _ offset: Int, _ count: Int, _ buffer: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer {
    if let m = r.pointee.master { return m + offset &* r.pointee.size }
    let native = r.pointee.isDouble ? DType.f64 : .f32
    if r.pointee.x.dense, r.pointee.x.dtype == native { return r.pointee.x.data + offset &* r.pointee.size }
    if r.pointee.isDouble {
      r.pointee.x.read(offset, count, buffer.assumingMemoryBound(to: Double.self), scale: 1)
    } else {
      r.pointee.x.read(offset, count, buffer.assumingMemoryBound(to: Float.self), scale: 1)
    }
    return buffer
  }

  @inline(__always)
  static func write(_ l: Layout, _ r: UnsafeMutablePointer<Record>, _ offset: Int, _ count: Int, _ p: UnsafeMutableRawPointer, rounding: UInt64?) {
    if r.pointee.isDouble {
      l.write(offset, count, UnsafePointer(p.assumingMemoryBound(to: Double.self)), rounding: rounding)
    } else {
      l.write(offset, count, UnsafePointer(p.assumingMemoryBound(to: Float.self)), rounding: rounding)
    }
  }

  /// Brings a changed block back to the host, and to the shadow.
  @inline(__always)
  static func closeParameters(_ r: UnsafeMutablePointer<Record>, _ offset: Int, _ count: Int, _ p: UnsafeMutableRawPointer, _ buffer: UnsafeMutableRawPointer) {
    if (p == buffer || r.pointee.master != nil) && !r.pointee.viewed { write(r.pointee.x, r, offset, count, p, rounding: r.pointee.rounding) }
    if let s = r.pointee.shadow { write(s, r, offset, count, p, rounding: nil) }
  }

  @inline(__always)
  static func run(_ k: (ElementKernels.Kernel, ElementKernels.Kernel), _ r: UnsafeMutablePointer<Record>, _ stage: Int, _ a: Apply, _ v: UnsafeMutableRawPointer, _ w: UnsafeMutableRawPointer, _ offset: Int, _ count: Int, _ scratch: UnsafeMutableRawPointer) {
    let (slots, used) = openSlots(r, stage, offset, count, scratch)
    let o = Operands(x: v, g: w, slots: slots, used: used, count: count, index: offset, pad: pad(scratch))
    if r.pointee.isDouble { k.1(r.pointee.rules[stage], a, o) } else { k.0(r.pointee.rules[stage], a, o) }
    closeSlots(r, stage, offset, count, scratch)
  }
}

extension Branch.Pass {
  /// The gradient of a block behind the chain of element-wise transforms; `apply.scale` is what is left to multiply by.
  @inline(__always)
  private func gradient(_ r: UnsafeMutablePointer<Record>, _ x: UnsafeMutableRawPointer, _ offset: Int, _ count: Int, _ scratch: UnsafeMutableRawPointer, copy: Bool, _ apply: inout Apply) -> UnsafeMutableRawPointer {
    if scratchGradient, let whole = r.pointee.scratch {
      apply.scale = 1
      return whole + offset &* r.pointee.size
    }
    let g = Walker.openGradient(r, offset, count, Walker.row(scratch, 0), copy: copy || !chain.isEmpty, scale: &apply.scale)
    for s in chain {
      if let e = s.element { Walker.run(e.map, r, s.id, Apply(), g, x, offset, count, scratch) }
    }
    return g
  }

  /// Runs the pass over one block; sums go to `out`.
  func block(_ b: Branch, _ r: UnsafeMutablePointer<Record>, _ offset: Int, _ count: Int, _ scratch: UnsafeMutableRawPointer, _ out: UnsafeMutablePointer<Double>) {
    let size = r.pointee.size
    let x = Walker.openParameters(r, offset, count, Walker.row(scratch, 2))
    switch work {
    case .measure(let s, let phase):
      guard let e = s.element else { return }
      var a = s.role == .rule ? r.pointee.apply : Apply()
      a.scale = r.pointee.apply.scale
      let g = gradient(r, x, offset, count, scratch, copy: false, &a)
      let (slots, used) = Walker.openSlots(r, s.id, offset, count, scratch)
      var o = Operands(x: g, g: x, slots: slots, used: used, count: count, index: offset, pad: Walker.pad(scratch))
      if scratchUpdate, let whole = r.pointee.scratch {
        // the operand is the update, its companion the gradient
        o.x = whole + offset &* size
        o.g = a.scale == 1 ? g : gradient(r, x, offset, count, scratch, copy: true, &a)
      }
      if r.pointee.isDouble { e.measure.1(r.pointee.rules[s.id], a, phase, o, out) } else { e.measure.0(r.pointee.rules[s.id], a, phase, o, out) }
      Walker.closeSlots(r, s.id, offset, count, scratch)

    case .save(let s):
      (r.pointee.slot(s.id, 0).base + offset &* size).copyMemory(from: x, byteCount: count &* size)

    case .materialise:
      guard let whole = r.pointee.scratch else { return }
      var a = r.pointee.apply
      let g = gradient(r, x, offset, count, scratch, copy: true, &a)
      if b.rule.whole != nil, a.coupled != 0 { b.addCoupled(r, g, x, a.coupled, count, Walker.pad(scratch)) }
      if g != whole + offset &* size { (whole + offset &* size).copyMemory(from: g, byteCount: count &* size) }

    case .direct:
      guard let whole = r.pointee.scratch, let e = b.rule.element else { return }
      var a = r.pointee.apply
      let g = gradient(r, x, offset, count, scratch, copy: true, &a)
      let u = whole + offset &* size
      if u != g { u.copyMemory(from: g, byteCount: count &* size) }
      Walker.run(e.map, r, b.rule.id, a, u, x, offset, count, scratch)
      runUpdates(r, u, g, offset, count, scratch)

    case .update:
      guard let whole = r.pointee.scratch else { return }
      var a = r.pointee.apply
      let g = gradient(r, x, offset, count, scratch, copy: true, &a)
      runUpdates(r, whole + offset &* size, g, offset, count, scratch)

    case .final:
      var a = r.pointee.apply
      let plain = updates.isEmpty && b.applier == nil
      if !scratchUpdate, plain, let e = b.rule.element {
        let g = gradient(r, x, offset, count, scratch, copy: false, &a)
        Walker.run(e.fused, r, b.rule.id, a, x, g, offset, count, scratch)
      } else {
        let g: UnsafeMutableRawPointer, u: UnsafeMutableRawPointer
        if scratchUpdate, let whole = r.pointee.scratch {
          u = whole + offset &* size
          g = updates.isEmpty ? u : gradient(r, x, offset, count, scratch, copy: true, &a)
        } else {
          g = gradient(r, x, offset, count, scratch, copy: true, &a)
          u = Walker.row(scratch, 1)
          u.copyMemory(from: g, byteCount: count &* size)
          if let e = b.rule.element { Walker.run(e.map, r, b.rule.id, a, u, x, offset, count, scratch) }
        }
        runUpdates(r, u, g, offset, count, scratch)
        (a.scale, a.coupled) = (1, 0)
        if let applier = b.applier, let e = applier.element {
          Walker.run(e.fused, r, applier.id, a, x, u, offset, count, scratch)
        } else {
          let o = Operands(x: x, g: u, slots: SlotPointers(repeating: u), used: 0, count: count, index: offset, pad: Walker.pad(scratch))
          if r.pointee.isDouble { Identity.kernels.fused.1(u, a, o) } else { Identity.kernels.fused.0(u, a, o) }
        }
      }
      runAfter(r, x, offset, count, scratch)
      Walker.closeParameters(r, offset, count, x, Walker.row(scratch, 2))

    case .after:
      runAfter(r, x, offset, count, scratch)
      Walker.closeParameters(r, offset, count, x, Walker.row(scratch, 2))

    case .whole, .wholeAfter: break
    }
  }

  @inline(__always)
  private func runUpdates(_ r: UnsafeMutablePointer<Record>, _ u: UnsafeMutableRawPointer, _ g: UnsafeMutableRawPointer, _ offset: Int, _ count: Int, _ scratch: UnsafeMutableRawPointer) {
    for s in updates {
      if let e = s.element { Walker.run(e.map, r, s.id, Apply(), u, g, offset, count, scratch) }
    }
  }

  @inline(__always)
  private func runAfter(_ r: UnsafeMutablePointer<Record>, _ x: UnsafeMutableRawPointer, _ offset: Int, _ count: Int, _ scratch: UnsafeMutableRawPointer) {
    for s in after {
      if let e = s.element { Walker.run(e.map, r, s.id, Apply(), x, x, offset, count, scratch) }
    }
  }
}

/// The rule whose direction is its operand: applies an update that is already there.
struct Identity: ElementRule {
  static let method = Method("identity", .transform, "The update itself.", rule: "", source: "")
  static let kernels = Thalweg.kernels(Identity.self)
  init(_ h: Hyper, _ c: StepContext) {}
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v }
}

private struct AddCoupled: ElementOperation {
  let weight: Double
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = x + weight * g }
}

extension Branch {
  fileprivate func addCoupled(_ r: UnsafeMutablePointer<Record>, _ g: UnsafeMutableRawPointer, _ x: UnsafeMutableRawPointer, _ weight: Double, _ count: Int, _ pad: UnsafeMutableRawPointer) {
    let o = Operands(x: g, g: x, slots: SlotPointers(repeating: g), used: 0, count: count, index: 0, pad: pad)
    if r.pointee.isDouble { plainKernel(AddCoupled(weight: weight), SIMD8<Double>.self)(o) } else { plainKernel(AddCoupled(weight: weight), SIMD16<Float>.self)(o) }
  }
}
