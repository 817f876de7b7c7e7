/// What one run of a solver holds: its inputs, vectors and numbers, by name. The memory stays where it is as long as
/// this lives.
public final class DriverStore {
  public enum Kind: Sendable { case input, wholeInput, vector }
  public struct Entry {
    public let name: String
    public let kind: Kind
    public let shape: [Int]
    public let memory: Memory
    public var count: Int { shape.reduce(1, &*) }
  }
  public let isDouble: Bool
  public let sizes: Sizes
  public private(set) var entries: [Entry] = []
  public let numberNames: [String]
  private let numberMemory: Memory
  public let numbers: UnsafeMutablePointer<Double>
  /// The first name that a driver used without having declared it.
  public var undeclared: String?

  public init(isDouble: Bool, sizes: Sizes, numbers names: [String]) throws(Failure) {
    (self.isDouble, self.sizes, numberNames) = (isDouble, sizes, names)
    numberMemory = try Memory(8 * names.count, .current)
    numbers = numberMemory.base.bindMemory(to: Double.self, capacity: max(1, names.count))
  }

  /// Room for a tensor; zeros, but for inputs, which are written at once.
  @discardableResult
  public func add(_ name: String, _ kind: Kind, _ shape: [Int]) throws(Failure) -> Entry {
    var bytes = kind == .wholeInput || isDouble ? 8 : 4
    for d in shape {
      let (product, overflow) = bytes.multipliedReportingOverflow(by: d)
      guard !overflow, product <= 1 << 48 else {
        throw Failure(Status.memory, "`\(name)` of shape \(shape) is larger than any memory")
      }
      bytes = product
    }
    let room = try Memory(bytes, .current, zeroed: kind == .vector)
    let entry = Entry(name: name, kind: kind, shape: shape, memory: room)
    entries.append(entry)
    return entry
  }
  public func entry(_ name: String) -> Entry? { entries.first { $0.name == name } }
  /// Whether a vector has a NaN.
  public func hasNaN(_ name: String) -> Bool {
    guard let e = entry(name), e.kind == .vector else { return false }
    func isIn<T: Real>(_ p: UnsafeMutablePointer<T>) -> Bool { (0..<e.count).contains { p[$0].isNaN } }
    let base = e.memory.base
    return isDouble ? isIn(base.assumingMemoryBound(to: Double.self)) : isIn(base.assumingMemoryBound(to: Float.self))
  }
  public func number(_ name: String) -> UnsafeMutablePointer<Double>? {
    numberNames.firstIndex(of: name).map { numbers + $0 }
  }
}

/// A run as its driver sees it: `try io["x"]` is a vector, `io.residual` a number.
@dynamicMemberLookup
public struct DriverIO<T: Real> {
  private let store: DriverStore
  private let vectors: [String: Vector<T>]
  private let wholes: [String: UnsafePointer<Int>]

  public init(_ store: DriverStore) {
    self.store = store
    var reals: [String: Vector<T>] = [:], integers: [String: UnsafePointer<Int>] = [:]
    for e in store.entries {
      if e.kind == .wholeInput {
        integers[e.name] = UnsafePointer(e.memory.base.bindMemory(to: Int.self, capacity: e.count))
      } else {
        reals[e.name] = Vector(e.name, 0, e.memory.base.bindMemory(to: T.self, capacity: e.count), e.shape)
      }
    }
    (vectors, wholes) = (reals, integers)
  }

  public var sizes: Sizes { store.sizes }
  public subscript(_ name: String) -> Vector<T> {
    get throws(Failure) {
      guard let v = vectors[name] else { throw Failure(Status.internal, "there is no vector `\(name)`") }
      return v
    }
  }
  /// An input that may be left out.
  public func optional(_ name: String) -> Vector<T>? { vectors[name] }
  /// An input of whole numbers, row-major.
  public func integers(_ name: String) throws(Failure) -> UnsafePointer<Int> {
    guard let p = wholes[name] else { throw Failure(Status.internal, "there is no input `\(name)`") }
    return p
  }

  public subscript(dynamicMember name: String) -> Double {
    get {
      if let p = store.number(name) { return p.pointee }
      store.undeclared = store.undeclared ?? name
      return .nan
    }
    nonmutating set {
      if let p = store.number(name) { p.pointee = newValue } else { store.undeclared = store.undeclared ?? name }
    }
  }
  /// A number that counts, at most `most`; what was saved may hold anything.
  public func count(_ name: String, _ most: Int = 1 << 52) throws(Failure) -> Int {
    let x = self[dynamicMember: name]
    guard x >= 0, x <= Double(most), x == x.rounded() else {
      throw Failure(Status.format, "`\(name)` must be a whole number up to \(most), got \(text(x))")
    }
    return Int(x)
  }
}
