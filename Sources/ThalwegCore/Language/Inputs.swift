import CThalweg

/// A named tensor that an objective takes or gives back, or that a regularizer needs besides the weights. A method
/// declares its list; the checks, introspection and Python's arguments come from it.
public struct Input: Sendable {
  public var name: String
  public var meaning: String
  /// One entry an axis: a name stands for one size wherever it occurs, a number for itself, "..." for any axes, the
  /// same everywhere.
  public var axes: [String]
  public var optional = false
  /// Of a solver: its numbers need not be finite, or are not looked at. With others a run ends at once as `nonfinite`.
  public var takesNonfinite = false
  /// Of a solver: its driver has it with the axes in the opposite order.
  public var isTurned = false
  /// Its axes may be empty.
  public var mayBeEmpty = false
  /// "..." stands for axes that fit those of the inputs before it as in NumPy: fewer of them, or of length 1.
  public var broadcasts = false
  /// Holds whole numbers: labels, indices.
  public var integer = false
  /// The pull-back gives its gradient.
  public var differentiable = false
  /// No input at all: the pull-back alone writes it, when the inputs given fix all its axes.
  public var result = false

  private init(_ name: String, _ axes: String, _ meaning: String) {
    (self.name, self.meaning) = (name, meaning)
    self.axes = axes.split(separator: ",").map { String($0.drop { $0 == " " }) }
  }
  /// Real numbers with a gradient.
  public static func variable(_ name: String, _ axes: String, _ meaning: String, optional: Bool = false) -> Input {
    var i = Input(name, axes, meaning)
    (i.differentiable, i.optional) = (true, optional)
    return i
  }
  /// Real numbers that are held constant.
  public static func constant(_ name: String, _ axes: String, _ meaning: String, optional: Bool = false) -> Input {
    var i = Input(name, axes, meaning)
    i.optional = optional
    return i
  }
  /// Whole numbers.
  public static func integer(_ name: String, _ axes: String, _ meaning: String, optional: Bool = false) -> Input {
    var i = Input(name, axes, meaning)
    (i.integer, i.optional) = (true, optional)
    return i
  }
  /// What an objective's pull-back gives besides the gradients of the inputs; what a solver finds. Of a solver, a
  /// result without axes is a number, in double.
  public static func result(_ name: String, _ axes: String, _ meaning: String) -> Input {
    var i = Input(name, axes, meaning)
    (i.result, i.optional) = (true, true)
    return i
  }

  /// The same with axes that may be empty.
  public var orEmpty: Input {
    var i = self
    i.mayBeEmpty = true
    return i
  }
  /// The same, spread over the leading axes of the inputs before it.
  public var broadcast: Input {
    var i = self
    i.broadcasts = true
    return i
  }
  /// The same matrix, of a solver whose driver reads it column by column: it gets it as (columns, rows).
  public var byColumns: Input {
    var i = self
    i.isTurned = true
    return i
  }
  /// The shape in which a driver has it, of that which a host gives, or the other way round.
  public func turned(_ shape: [Int]) -> [Int] { isTurned ? shape.reversed() : shape }
  /// The same, of a solver, with numbers that need not be finite.
  public var orNonfinite: Input {
    var i = self
    i.takesNonfinite = true
    return i
  }

  /// What a solver keeps from one request to the next, or what a request gives or wants; without axes it is a number.
  public static func kept(_ name: String, _ axes: String, _ meaning: String) -> Input { Input(name, axes, meaning) }
  public static func given(_ name: String, _ axes: String, _ meaning: String) -> Input { Input(name, axes, meaning) }
  public static func wanted(_ name: String, _ axes: String, _ meaning: String) -> Input { Input(name, axes, meaning) }

  /// "(B, m)".
  public var shape: String { "(" + axes.joined(separator: ", ") + (axes.count == 1 ? ",)" : ")") }
  /// The position of "...".
  public var anyAxes: Int? { axes.firstIndex(of: "...") }
  public var takesAnyAxes: Bool { anyAxes != nil }
}

/// The sizes of the axes that the inputs of a call have in common.
public struct Sizes: Sendable {
  private var named: [String: (size: Int, from: String)] = [:]
  private var leading: (axes: [Int], from: String)?

  public init() {}

  func known(_ axis: String) -> Int? { named[axis]?.size }
  /// The size of an axis; 0 when no input has it.
  public subscript(_ axis: String) -> Int { named[axis]?.size ?? 0 }
  /// Names the size of an axis that no input has.
  public mutating func set(_ axis: String, _ size: Int) { named[axis] = (size, "the method") }
  /// The product of the axes that "..." stands for; 1 when there are none.
  public var samples: Int { leading?.axes.reduce(1, &*) ?? 1 }
  /// Those axes.
  public var leadingAxes: [Int] { leading?.axes ?? [] }

  /// Takes the shape of an input; throws when it does not fit its declaration or the inputs before it. No axis may be
  /// empty.
  public mutating func match(_ input: Input, _ shape: [Int]) throws(Failure) {
    let own = input.axes.filter { $0 != "..." }, at = input.anyAxes ?? 0
    let extra = shape.count - own.count
    guard input.takesAnyAxes ? extra >= 0 : extra == 0 else {
      throw Failure(Status.shape, "`\(input.name)` must have the shape \(input.shape), got \(shape)")
    }
    guard input.mayBeEmpty || !shape.contains(0) else {
      throw Failure(Status.shape, "`\(input.name)` is empty: its shape \(input.shape) is \(shape)")
    }
    if input.broadcasts, let known = leading {
      guard extra <= known.axes.count,
        zip(shape.reversed(), known.axes.reversed()).allSatisfy({ $0 == 1 || $0 == $1 })
      else {
        throw Failure(
          Status.shape,
          "`\(input.name)` of shape \(shape) cannot be spread over \(known.axes), the axes of `\(known.from)`")
      }
    } else if input.takesAnyAxes {
      let axes = Array(shape[at..<(at + extra)])
      if let known = leading, known.axes != axes {
        throw Failure(
          Status.shape, "`\(input.name)` and `\(known.from)` differ in their leading axes: \(axes) and \(known.axes)")
      }
      leading = (axes, input.name)
    }
    let rest = input.takesAnyAxes ? shape[..<at] + shape[(at + extra)...] : shape[...]
    for (axis, size) in zip(own, rest) {
      if let number = Int(axis) {
        guard size == number else {
          throw Failure(Status.shape, "`\(input.name)` must have the shape \(input.shape), got \(shape)")
        }
      } else if let known = named[axis] {
        guard known.size == size else {
          throw Failure(
            Status.shape, "axis \(axis) has \(size) elements in `\(input.name)` and \(known.size) in `\(known.from)`")
        }
      } else {
        named[axis] = (size, input.name)
      }
    }
  }

  /// The shape of a declaration, nil while an axis of it is unknown.
  public func shape(_ input: Input) -> [Int]? {
    var out: [Int] = []
    for axis in input.axes {
      if axis == "..." {
        guard let leading else { return nil }
        out += leading.axes
      } else if let size = Int(axis) ?? named[axis]?.size {
        out.append(size)
      } else {
        return nil
      }
    }
    return out
  }
}

/// One tensor that a host passes as an input: real numbers in the dtypes of parameters, or whole numbers.
public struct Operand: Sendable {
  public enum Integers: Sendable { case i32, i64 }
  /// Where the elements are. For whole numbers its dtype is one of the same size, and nothing reads through it.
  public let view: View
  public let integers: Integers?

  /// nil when the tensor is marked absent; nothing else of it is looked at then.
  public init?(_ t: tw_tensor, _ name: String) throws(Failure) {
    if t.flags & UInt32(TW_TENSOR_ABSENT) != 0 { return nil }
    var t = t
    switch t.dtype {
    case Int32(TW_I32): (t.dtype, integers) = (DType.f32.rawValue, .i32)
    case Int32(TW_I64): (t.dtype, integers) = (DType.f64.rawValue, .i64)
    default: integers = nil
    }
    view = try View(t, name)
  }
  public init(_ view: View) { (self.view, integers) = (view, nil) }
}

/// The inputs of one call, dense: real ones in the compute type, whole ones as Int.
public struct Inputs<T: Real> {
  public let sizes: Sizes
  /// What the objective keeps between passes.
  public let memory: ObjectiveMemory
  private var reals: [String: UnsafePointer<T>] = [:]
  private var integers: [String: UnsafePointer<Int>] = [:]
  private var owned: [Memory] = []

  /// The memory is the host's where it is dense and of the compute type already; it must stay as it is meanwhile.
  public init(_ list: [(Input, Operand)], _ sizes: Sizes, _ memory: ObjectiveMemory) throws(Failure) {
    (self.sizes, self.memory) = (sizes, memory)
    for (input, operand) in list {
      if input.integer { try readIntegers(input, operand); continue }
      try readReals(input, input.broadcasts ? operand.view.broadcast(to: sizes.leadingAxes) : operand.view)
    }
  }

  /// A required input, row-major.
  public subscript(_ name: String) -> UnsafePointer<T> {
    get throws(Failure) {
      guard let p = reals[name] else { throw Failure(Status.needs, "with these inputs it needs `\(name)` too") }
      return p
    }
  }
  /// An input that may be left out.
  public func optional(_ name: String) -> UnsafePointer<T>? { reals[name] }
  /// A required input of whole numbers, row-major.
  public func integers(_ name: String) throws(Failure) -> UnsafePointer<Int> {
    guard let p = integers[name] else { throw Failure(Status.needs, "with these inputs it needs `\(name)` too") }
    return p
  }
  public func optionalIntegers(_ name: String) -> UnsafePointer<Int>? { integers[name] }

  private mutating func readReals(_ input: Input, _ v: View) throws(Failure) {
    if v.dense, v.dtype == (T.isDouble ? .f64 : .f32) {
      reals[input.name] = UnsafePointer(v.data.assumingMemoryBound(to: T.self))
      return
    }
    let memory = try Memory(v.count * MemoryLayout<T>.stride, .current, zeroed: false)
    let p = memory.base.bindMemory(to: T.self, capacity: v.count)
    let l = Layout(v)
    defer { l.release() }
    l.read(0, v.count, p, scale: 1)
    owned.append(memory)
    reals[input.name] = UnsafePointer(p)
  }

  private mutating func readIntegers(_ input: Input, _ o: Operand) throws(Failure) {
    let n = o.view.count
    let memory = try Memory(n * MemoryLayout<Int>.stride, .current, zeroed: false)
    let p = memory.base.bindMemory(to: Int.self, capacity: n)
    let l = Layout(o.view)
    defer { l.release() }
    switch o.integers {
    case .i32:
      l.forEachRun(0, n) { offset, stride, first, run in
        let q = l.data.assumingMemoryBound(to: Int32.self) + offset
        for i in 0..<run { p[first + i] = Int(q[i * stride]) }
      }
    case .i64:
      l.forEachRun(0, n) { offset, stride, first, run in
        let q = l.data.assumingMemoryBound(to: Int64.self) + offset
        for i in 0..<run { p[first + i] = Int(q[i * stride]) }
      }
    case nil:
      // in place: a double and an Int have the same size
      let x = memory.base.bindMemory(to: Double.self, capacity: n)
      l.read(0, n, x, scale: 1)
      for i in 0..<n where x[i] != x[i].rounded() || !(abs(x[i]) <= 0x1p53) {
        throw Failure(Status.range, "`\(input.name)` must hold whole numbers, got \(text(x[i])) at element \(i)")
      }
      for i in 0..<n {
        let whole = Int((memory.base + i * 8).load(as: Double.self))
        (memory.base + i * 8).storeBytes(of: whole, as: Int.self)
      }
      _ = memory.base.bindMemory(to: Int.self, capacity: n)
    }
    owned.append(memory)
    integers[input.name] = UnsafePointer(p)
  }
}
