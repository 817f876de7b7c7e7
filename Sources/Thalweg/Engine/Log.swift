import CThalweg

/// Warnings to the host; silent unless it asked.
package enum Log {
  nonisolated(unsafe) private static var hook: tw_log?
  nonisolated(unsafe) private static var context: UnsafeMutableRawPointer?
  package static func set(_ h: tw_log?, _ c: UnsafeMutableRawPointer?) { (hook, context) = (h, c) }
  package static func warn(_ message: String) { if let hook { message.withCString { hook(context, 1, $0) } } }
}
