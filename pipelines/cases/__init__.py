"""From a case's files to a batch: reading, preprocessing, cache, patches, augmentation."""
