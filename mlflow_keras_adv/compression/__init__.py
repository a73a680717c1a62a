"""A model in, a smaller model or a `.tflite` file out, and what each of them weighs and takes."""
