import CThalweg
import Glibc

/// Where state and scratch come from: malloc, or the host's hooks.
public struct Allocator: @unchecked Sendable {
  public var allocate: tw_allocate?
  public var deallocate: tw_deallocate?
  public var context: UnsafeMutableRawPointer?

  public nonisolated(unsafe) static var process = Allocator()
  /// That of the handle at work, where it has one, else the process's.
  public static var current: Allocator {
    let s = twi_services()
    return s.allocate == nil ? process : Allocator(s.allocate, s.deallocate, s.allocator_context)
  }
  public init() {}
  public init(_ allocate: tw_allocate?, _ deallocate: tw_deallocate?, _ context: UnsafeMutableRawPointer?) {
    (self.allocate, self.deallocate, self.context) = (allocate, deallocate, context)
  }
}

/// A run of 64-byte aligned memory, zeroed unless told otherwise.
public final class Memory: @unchecked Sendable {
  public let base: UnsafeMutableRawPointer
  public let size: Int
  /// The bytes that were asked for.
  public let count: Int
  private let allocator: Allocator

  /// Throws TW_ERROR_MEMORY.
  public init(_ size: Int, _ allocator: Allocator, zeroed: Bool = true) throws(Failure) {
    let bytes = max(64, size)
    var p: UnsafeMutableRawPointer?
    if let hook = allocator.allocate {
      p = hook(allocator.context, bytes, 64)
    } else {
      if posix_memalign(&p, bytes >= 1 << 22 ? 1 << 21 : 64, bytes) != 0 { p = nil }
      // Large state in huge pages: fewer address translations in a walk through all of it.
      if let p, bytes >= 1 << 22 { madvise(p, bytes, 14 /* MADV_HUGEPAGE */) }
    }
    guard let p else { throw Failure(Status.memory, "cannot allocate \(bytes) bytes") }
    if zeroed { memset(p, 0, bytes) }
    base = p
    (self.size, count) = (bytes, size)
    self.allocator = allocator
  }

  /// Throws TW_ERROR_MEMORY where so many bytes cannot be had now. For arrays of the standard library, which end the
  /// process in that case.
  public static func ask(_ bytes: Int) throws(Failure) {
    guard twi_can_allocate(bytes) else { throw Failure(Status.memory, "cannot allocate \(bytes) bytes") }
  }

  deinit {
    if let hook = allocator.deallocate {
      hook(allocator.context, base, size)
    } else if allocator.allocate == nil {
      free(base)
    }
  }
}

/// The next multiple of 64.
@inlinable @inline(__always) public func aligned(_ n: Int) -> Int { (n + 63) & ~63 }
