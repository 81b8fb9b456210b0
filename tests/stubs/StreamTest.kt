// Two streams in turn, with chunks of 4 steps; then a stream that is full.

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

fun floats(vararg values: Float): ByteBuffer {
    val buffer = ByteBuffer.allocateDirect(4 * values.size).order(ByteOrder.nativeOrder())
    buffer.asFloatBuffer().put(values)
    return buffer
}

fun main() {
    val interpreter = Interpreter()
    val first = Stream(interpreter, 5)
    val second = Stream(interpreter, null)
    val outputs = floats(0f, 0f, 0f, 0f)
    val output = floats(0f)
    first.read("prefill", floats(1f, 1f, 1f, 1f), outputs)
    check(outputs.getFloat(12) == 4f)
    second.read("step", floats(2f), output)
    check(output.getFloat(0) == 2f)
    first.read("step", floats(1f), output)
    check(output.getFloat(0) == 5f)
    try {
        first.read("step", floats(1f), output)
        error("The stream was not full.")
    } catch (full: IllegalArgumentException) {
        check(full.message!!.contains("end after 5 steps"))
    }
    check(first.steps == 5L)
    println("passed")
}
