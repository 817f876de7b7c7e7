import CThalweg

/// How numbers lie in memory.
public enum DType: Int32, Sendable {
  case f32 = 1, f64 = 2, f16 = 3, bf16 = 4
  public var size: Int { self == .f64 ? 8 : self == .f32 ? 4 : 2 }
  public var name: String { ["", "f32", "f64", "f16", "bf16"][Int(rawValue)] }
  /// The size of the compute type: float32, or float64 for f64.
  public var computeSize: Int { self == .f64 ? 8 : 4 }
}

/// A checked view of host memory.
public struct View: @unchecked Sendable {
  public var data: UnsafeMutableRawPointer
  public var dtype: DType
  public var shape: [Int]
  public var strides: [Int]
  public var readOnly: Bool
  public var role: Int
  /// No gradient this time.
  public var absent = false
  public var count: Int { shape.reduce(1, &*) }
  /// Row-major without gaps.
  public var dense: Bool {
    if count <= 1 { return true }
    var expected = 1
    for (n, s) in zip(shape.reversed(), strides.reversed()) where n != 1 {
      if s != expected { return false }
      expected = expected &* n
    }
    return true
  }

  /// The same elements, spread over axes that they fit.
  func broadcast(to axes: [Int]) -> View {
    var v = self
    let missing = axes.count - shape.count
    v.strides = axes.indices.map { $0 < missing || shape[$0 - missing] == 1 ? 0 : strides[$0 - missing] }
    v.shape = axes
    return v
  }

  /// The same elements with the axes in the opposite order.
  public var turned: View {
    var v = self
    (v.shape, v.strides) = (shape.reversed(), strides.reversed())
    return v
  }

  /// Checks everything about a tensor that can be checked without touching its memory.
  public init(_ t: tw_tensor, _ what: String) throws(Failure) {
    guard let dtype = DType(rawValue: t.dtype) else {
      throw Failure(Status.dtype, "\(what): unknown dtype \(t.dtype); expected TW_F32, TW_F64, TW_F16 or TW_BF16")
    }
    guard t.ndim >= 0, t.ndim <= 64 else { throw Failure(Status.shape, "\(what): ndim must be 0 to 64, got \(t.ndim)") }
    let n = Int(t.ndim)
    var shape: [Int] = [], strides: [Int] = []
    if n > 0 {
      guard let p = t.shape else { throw Failure(Status.argument, "\(what): shape is NULL but ndim is \(n)") }
      shape = (0..<n).map { Int(p[$0]) }
    }
    var count = 1
    for (axis, d) in shape.enumerated() {
      guard d >= 0 else { throw Failure(Status.shape, "\(what): dimension \(axis) is \(d); it must not be negative") }
    }
    if !shape.contains(0) {
      for d in shape {
        let (product, overflow) = count.multipliedReportingOverflow(by: d)
        guard !overflow, product <= 1 << 48 else {
          throw Failure(Status.shape, "\(what): the number of elements overflows")
        }
        count = product
      }
    } else {
      count = 0
    }
    if let p = t.strides, n > 0 {
      strides = (0..<n).map { Int(p[$0]) }
      var low = 0, high = 0
      for (d, s) in zip(shape, strides) where d > 1 && count > 0 {
        let (reach, overflow) = (d - 1).multipliedReportingOverflow(by: s)
        let (l, o1) = low.addingReportingOverflow(min(reach, 0)), (h, o2) = high.addingReportingOverflow(max(reach, 0))
        guard !overflow, !o1, !o2, l > -(Int.max / 32), h < Int.max / 32 else {
          throw Failure(Status.shape, "\(what): the strides overflow")
        }
        (low, high) = (l, h)
      }
    } else {
      strides = [Int](repeating: 1, count: n)
      if count > 0 { for i in stride(from: n - 2, through: 0, by: -1) { strides[i] = strides[i + 1] &* shape[i + 1] } }
    }
    let absent = t.flags & UInt32(TW_TENSOR_ABSENT) != 0
    let placeholder = UnsafeMutableRawPointer(StepContext.nothing)
    if t.data == nil, count > 0, !absent {
      throw Failure(Status.argument, "\(what): data is NULL but the tensor has \(count) elements")
    }
    let data = t.data ?? placeholder
    if UInt(bitPattern: data) % UInt(dtype.size) != 0, count > 0 {
      throw Failure(Status.layout, "\(what): data is not aligned to \(dtype.size) bytes, as \(dtype.name) needs")
    }
    if count > 0 {
      // the memory must not run past either end of the address space
      var low = 0, high = 1
      for (d, s) in zip(shape, strides) where d > 1 {
        low &+= min(0, (d - 1) &* s)
        high &+= max(0, (d - 1) &* s)
      }
      let base = UInt(bitPattern: data)
      guard !base.addingReportingOverflow(UInt(bitPattern: high &* dtype.size)).overflow,
        !base.subtractingReportingOverflow(UInt(bitPattern: (0 &- low) &* dtype.size)).overflow
      else { throw Failure(Status.layout, "\(what): its memory would run past the end of the address space") }
    }
    (self.data, self.dtype, self.shape, self.strides) = (data, dtype, shape, strides)
    readOnly = t.flags & UInt32(TW_TENSOR_READ_ONLY) != 0
    role = Int(t.role)
    self.absent = absent
  }

  /// The bytes between the first and the last element.
  public var extent: (low: UInt, high: UInt) {
    var low = 0, high = 0
    for (d, s) in zip(shape, strides) where d > 1 {
      low &+= min(0, (d - 1) &* s)
      high &+= max(0, (d - 1) &* s)
    }
    let base = Int(bitPattern: data)
    return (UInt(bitPattern: base &+ low &* dtype.size), UInt(bitPattern: base &+ (high &+ 1) &* dtype.size))
  }
}

/// Where the elements of a tensor are: a pointer when dense, else axes to walk. Plain data, so that a step touches no
/// reference count.
public struct Layout: @unchecked Sendable {
  public var data: UnsafeMutableRawPointer
  public var dtype: DType
  public var dense: Bool
  public var ndim: Int
  public var axes: UnsafeMutablePointer<(count: Int, stride: Int)>?

  public init(_ v: View) {
    (data, dtype, dense) = (v.data, v.dtype, v.dense)
    (ndim, axes) = (0, nil)
    guard !dense else { return }
    // Neighbouring axes that continue each other are one.
    var merged: [(count: Int, stride: Int)] = []
    for (n, s) in zip(v.shape, v.strides) where n != 1 {
      if let last = merged.last, last.stride == s &* n {
        merged[merged.count - 1] = (last.count &* n, s)
      } else {
        merged.append((n, s))
      }
    }
    ndim = merged.count
    let p = UnsafeMutablePointer<(count: Int, stride: Int)>.allocate(capacity: max(1, ndim))
    for (i, a) in merged.enumerated() { p[i] = a }
    axes = p
  }
  public func release() { axes?.deallocate() }

  /// Calls `body(element offset, stride, first, count)` for the straight runs of elements start..<start+count.
  @inlinable @inline(__always)
  public func forEachRun(
    _ start: Int, _ count: Int, _ body: (_ offset: Int, _ stride: Int, _ first: Int, _ n: Int) -> Void
  ) {
    guard let axes, ndim > 0 else { return body(start, 1, 0, count) }
    let inner = axes[ndim - 1]
    var done = 0
    while done < count {
      var rest = (start + done) / inner.count
      let column = (start + done) - rest * inner.count
      let n = min(inner.count - column, count - done)
      var offset = column * inner.stride
      var a = ndim - 2
      while a >= 0 {
        let q = rest / axes[a].count
        offset += (rest - q * axes[a].count) * axes[a].stride
        rest = q
        a -= 1
      }
      body(offset, inner.stride, done, n)
      done += n
    }
  }
}

// MARK: conversions

@inlinable @inline(__always) public func floatFromBF16(_ b: UInt16) -> Float { Float(bitPattern: UInt32(b) << 16) }

/// Rounds to nearest, ties to even; NaN stays NaN.
@inlinable @inline(__always) public func bf16FromFloat(_ f: Float) -> UInt16 {
  let b = f.bitPattern
  let rounded = (b &+ 0x7fff &+ ((b >> 16) & 1)) >> 16
  return UInt16(truncatingIfNeeded: f == f ? rounded : (b >> 16) | 0x40)
}

extension DType {
  @inlinable @inline(__always) func get<T: Real>(_ p: UnsafeRawPointer, _ i: Int, _: T.Type) -> T {
    switch self {
    case .f32: T(p.assumingMemoryBound(to: Float.self)[i])
    case .f64: T(p.assumingMemoryBound(to: Double.self)[i])
    case .f16: T(Float(p.assumingMemoryBound(to: Float16.self)[i]))
    case .bf16: T(floatFromBF16(p.assumingMemoryBound(to: UInt16.self)[i]))
    }
  }
}

extension Layout {
  /// out[i] = scale · element(start + i), widened to the compute type.
  @inline(never)
  public func read<T: Real>(_ start: Int, _ count: Int, _ out: UnsafeMutablePointer<T>, scale: T) {
    if dense {
      switch dtype {
      case .f32:
        let p = data.assumingMemoryBound(to: Float.self) + start
        if scale == 1 {
          for i in 0..<count { out[i] = T(p[i]) }
        } else {
          for i in 0..<count { out[i] = scale * T(p[i]) }
        }
      case .f64:
        let p = data.assumingMemoryBound(to: Double.self) + start
        if scale == 1 {
          for i in 0..<count { out[i] = T(p[i]) }
        } else {
          for i in 0..<count { out[i] = scale * T(p[i]) }
        }
      case .f16:
        let p = data.assumingMemoryBound(to: Float16.self) + start
        for i in 0..<count { out[i] = scale * T(Float(p[i])) }
      case .bf16:
        let p = data.assumingMemoryBound(to: UInt16.self) + start
        for i in 0..<count { out[i] = scale * T(floatFromBF16(p[i])) }
      }
      return
    }
    forEachRun(start, count) { offset, stride, first, n in
      switch dtype {
      case .f32:
        let p = data.assumingMemoryBound(to: Float.self) + offset
        for i in 0..<n { out[first + i] = scale * T(p[i * stride]) }
      case .f64:
        let p = data.assumingMemoryBound(to: Double.self) + offset
        for i in 0..<n { out[first + i] = scale * T(p[i * stride]) }
      case .f16:
        let p = data.assumingMemoryBound(to: Float16.self) + offset
        for i in 0..<n { out[first + i] = scale * T(Float(p[i * stride])) }
      case .bf16:
        let p = data.assumingMemoryBound(to: UInt16.self) + offset
        for i in 0..<n { out[first + i] = scale * T(floatFromBF16(p[i * stride])) }
      }
    }
  }

  /// element(start + i) = in[i], rounded to nearest; `rounding` nil, or the key of stochastic rounding for 16-bit
  /// elements.
  @inline(never)
  public func write<T: Real>(_ start: Int, _ count: Int, _ values: UnsafePointer<T>, rounding: UInt64?) {
    if let key = rounding, dtype == .bf16 || dtype == .f16 {
      forEachRun(start, count) { offset, stride, first, n in
        let p = data.assumingMemoryBound(to: UInt16.self) + offset
        for i in 0..<n {
          let noise = UInt32(truncatingIfNeeded: Random.mix(key, UInt64(truncatingIfNeeded: start + first + i)) >> 32)
          p[i * stride] =
            dtype == .bf16
            ? bf16Stochastic(Float(values[first + i]), noise) : f16Stochastic(Float(values[first + i]), noise)
        }
      }
      return
    }
    if dense {
      switch dtype {
      case .f32:
        let p = data.assumingMemoryBound(to: Float.self) + start
        for i in 0..<count { p[i] = Float(values[i]) }
      case .f64:
        let p = data.assumingMemoryBound(to: Double.self) + start
        for i in 0..<count { p[i] = Double(values[i]) }
      case .f16:
        let p = data.assumingMemoryBound(to: Float16.self) + start
        for i in 0..<count { p[i] = Float16(Float(values[i])) }
      case .bf16:
        let p = data.assumingMemoryBound(to: UInt16.self) + start
        for i in 0..<count { p[i] = bf16FromFloat(Float(values[i])) }
      }
      return
    }
    forEachRun(start, count) { offset, stride, first, n in
      switch dtype {
      case .f32:
        let p = data.assumingMemoryBound(to: Float.self) + offset
        for i in 0..<n { p[i * stride] = Float(values[first + i]) }
      case .f64:
        let p = data.assumingMemoryBound(to: Double.self) + offset
        for i in 0..<n { p[i * stride] = Double(values[first + i]) }
      case .f16:
        let p = data.assumingMemoryBound(to: Float16.self) + offset
        for i in 0..<n { p[i * stride] = Float16(Float(values[first + i])) }
      case .bf16:
        let p = data.assumingMemoryBound(to: UInt16.self) + offset
        for i in 0..<n { p[i * stride] = bf16FromFloat(Float(values[first + i])) }
      }
    }
  }

  /// Sets elements start..<start+count to zero.
  public func clear(_ start: Int, _ count: Int) {
    if dense {
      (data + start * dtype.size).initializeMemory(as: UInt8.self, repeating: 0, count: count * dtype.size)
      return
    }
    forEachRun(start, count) { offset, stride, _, n in
      for i in 0..<n {
        (data + (offset + i * stride) * dtype.size).initializeMemory(as: UInt8.self, repeating: 0, count: dtype.size)
      }
    }
  }
}

/// Adds random bits below the cut, then cuts: up with the probability of the remainder.
@inlinable @inline(__always) public func bf16Stochastic(_ f: Float, _ noise: UInt32) -> UInt16 {
  guard f.isFinite else { return bf16FromFloat(f) }
  let b = f.bitPattern &+ (noise & 0xffff)
  return UInt16(truncatingIfNeeded: (b & 0x7f80_0000) == 0x7f80_0000 ? f.bitPattern >> 16 : b >> 16)
}

@inlinable @inline(__always) public func f16Stochastic(_ f: Float, _ noise: UInt32) -> UInt16 {
  let near = Float16(f)
  guard near.isFinite, f.isFinite else { return near.bitPattern }
  let below = Float(near) <= f ? near : near.nextDown
  let above = below.nextUp
  guard above.isFinite, Float(below) != f else { return Float(below) == f ? below.bitPattern : near.bitPattern }
  let p = (f - Float(below)) / (Float(above) - Float(below))
  return (Float(noise >> 8) * 0x1p-24 < p ? above : below).bitPattern
}

extension Layout {
  /// `read` and `write` with memory of a compute type whose elements have `size` bytes.
  @inlinable @inline(__always)
  public func read(_ start: Int, _ count: Int, into p: UnsafeMutableRawPointer, size: Int, scale: Double) {
    if size == 8 {
      read(start, count, p.assumingMemoryBound(to: Double.self), scale: scale)
    } else {
      read(start, count, p.assumingMemoryBound(to: Float.self), scale: Float(scale))
    }
  }
  @inlinable @inline(__always)
  public func write(_ start: Int, _ count: Int, from p: UnsafeMutableRawPointer, size: Int, rounding: UInt64?) {
    if size == 8 {
      write(start, count, UnsafePointer(p.assumingMemoryBound(to: Double.self)), rounding: rounding)
    } else {
      write(start, count, UnsafePointer(p.assumingMemoryBound(to: Float.self)), rounding: rounding)
    }
  }
}
